"""Focal loss of one sigmoid a class (Lin et al., ICCV 2017), as class-balanced training uses it.

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss


class SigmoidFocal(Loss):
    """-(1 - q)^gamma log q summed over the classes, q being what a class's own sigmoid gives the right answer."""

    def __init__(self, counts_C: torch.Tensor, gamma: float = 1.0) -> None:
        super().__init__(counts_C)
        self.gamma = gamma

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        # q = sigmoid(a) with the logit turned round where the class is another's.
        right_BC = -logits_BC.scatter(1, label_B[:, None], -logits_BC.gather(1, label_B[:, None]))
        return (torch.exp(-self.gamma * F.softplus(right_BC)) * F.softplus(-right_BC)).sum(dim=1)
