"""The plain linear classifier.

D feature, C identities of this rank's range.
"""

import torch
from torch import nn

from facelt.heads.head import Head
from facelt.parallel import ClassRange, ProductLogits, Rows, SharedFeature


class LinearHead(Head):
    """z = W f + b, initialised as torch's Linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = ClassRange.own(num_classes)
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, feature: SharedFeature) -> ProductLogits:
        return ProductLogits(feature.all_BD, Rows(self.weight, self.bias), self.classes, feature.shares)
