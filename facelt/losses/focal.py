"""Focal loss over the softmax: images that are classified well count less.

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss


class Focal(Loss):
    """-(1 - p)^gamma log p of the own class's probability, as LDAM's repository has it."""

    def __init__(self, counts_C: torch.Tensor, gamma: float = 1.0) -> None:
        super().__init__(counts_C)
        self.gamma = gamma

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        surprise_B = F.cross_entropy(logits_BC, label_B, reduction="none")
        # Where p rounds to 1 a power below 1 has no slope: the clamp's is 0, and so is that of the product.
        missing_B = -torch.expm1(-surprise_B)
        return missing_B.clamp_min(torch.finfo(missing_B.dtype).tiny).pow(self.gamma) * surprise_B
