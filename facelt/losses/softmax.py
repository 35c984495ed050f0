"""Plain cross-entropy.

B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.loss import Loss


class Softmax(Loss):
    """-log p of the own class."""

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BC, label_B, reduction="none")
