"""Balanced softmax (Ren et al., NeurIPS 2020): the training set's long tail is part of the softmax.

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss, seen


class BalancedSoftmax(Loss):
    """Cross-entropy of the logits + log n."""

    log_count_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__(counts_C)
        self.register_buffer("log_count_C", seen(counts_C).log().to(torch.get_default_dtype()), persistent=False)

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BC + self.log_count_C, label_B, reduction="none")
