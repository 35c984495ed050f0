"""The plain linear classifier.

b images of this rank, D feature, C identities of this rank's range.
"""

import torch
import torch.nn.functional as F
from torch import nn

from facelt.heads.head import Head
from facelt.parallel import ClassRange, ShardedLogits, SharedFeature


class LinearHead(Head):
    """z = W f + b, initialised as torch's Linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = ClassRange.own(num_classes)
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def columns(self, feature_BD: torch.Tensor) -> torch.Tensor:
        """Logits of this rank's classes, [B, C]."""
        return F.linear(feature_BD, self.weight, self.bias)

    def forward(self, feature: SharedFeature) -> ShardedLogits:
        return ShardedLogits(self.columns(feature.all_BD), self.classes, feature.shares)
