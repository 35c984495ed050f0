"""Label-distribution-aware margins (Cao et al., NeurIPS 2019).

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss, seen


class Ldam(Loss):
    """Cross-entropy with scale * K / n^(1/4) taken off the own logit, K such that the rarest class has `max_margin`.

    The logits are cosines times `scale`, as the head gives them.
    """

    margin_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__(counts_C)
        share_C = seen(counts_C).pow(-0.25)
        margin_C = scale * max_margin * share_C / share_C.max()
        self.register_buffer("margin_C", margin_C.to(torch.get_default_dtype()), persistent=False)

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        taken_B1 = self.margin_C[label_B].to(logits_BC.dtype)[:, None]
        return F.cross_entropy(logits_BC.scatter_add(1, label_B[:, None], -taken_B1), label_B, reduction="none")
