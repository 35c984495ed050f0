"""The cosine classifier, without a normalised copy of its weights.

B batch, D feature, C identities of this rank's range.
"""

import torch
import torch.nn.functional as F
from torch import nn

from facelt.heads.head import Head
from facelt.parallel import MIN_NORM, ClassRange, Rows, ShardedLogits, SharedFeature, Shares


class CosineHead(Head):
    """z = scale * cos(f, w), scale 16 as OLTR's released code has it."""

    def __init__(self, dim: int, num_classes: int, scale: float = 16.0) -> None:
        super().__init__()
        self.classes = ClassRange.own(num_classes)
        self.scale = scale
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))

    def along(self, vector_BD: torch.Tensor, shares: Shares) -> ShardedLogits:
        """z = scale * v . w / |w|: the vectors of all images with their length, the rows without theirs."""
        return ShardedLogits(self.scale * vector_BD, Rows(self.weight, unit=True), self.classes, shares)

    def forward(self, feature: SharedFeature) -> ShardedLogits:
        return self.along(F.normalize(feature.all_BD, dim=1, eps=MIN_NORM), feature.shares)
