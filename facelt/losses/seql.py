"""Softmax equalisation (Tan et al., CVPR 2020): rare classes are spared as the wrong answers of others' images.

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss

# Far below every logit and finite, so that no difference of two of them is NaN.
LEFT_OUT = -1e7


class Seql(Loss):
    """Cross-entropy over a softmax that leaves rare classes out, each image and class drawn for itself.

    Rare are classes with less than the share `threshold` of the training images. They are left out with the
    probability `gamma`, but for the image's own class.
    """

    rare_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, threshold: float, gamma: float = 0.9) -> None:
        super().__init__(counts_C)
        self.gamma = gamma
        self.register_buffer("rare_C", counts_C < threshold * counts_C.sum(), persistent=False)

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        drawn_BC = torch.rand(logits_BC.shape, generator=generator, device=logits_BC.device) < self.gamma
        out_BC = (drawn_BC & self.rare_C).scatter(1, label_B[:, None], False)
        return F.cross_entropy(logits_BC.masked_fill(out_BC, LEFT_OUT), label_B, reduction="none")
