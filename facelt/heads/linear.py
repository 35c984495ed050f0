"""The plain linear classifier.

B batch, D feature, C identities.
"""

import torch
import torch.nn.functional as F
from torch import nn

from facelt.parallel import ClassRange, ShardedLogits


class LinearHead(nn.Module):
    """z = W f + b, initialised as torch's Linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = ClassRange.whole(num_classes)
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(len(self.classes), dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, feature_BD: torch.Tensor) -> ShardedLogits:
        return ShardedLogits(F.linear(feature_BD, self.weight, self.bias), self.classes)
