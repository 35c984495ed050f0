"""A linear classifier that learns nothing but one factor a class.

C identities of this rank's range.
"""

import torch
from torch import nn

from facelt.heads.head import Head
from facelt.heads.linear import LinearHead
from facelt.parallel import ProductLogits, Rows, SharedFeature


class ScaledHead(Head):
    """z_c = s_c (w_c f + b_c): w and b stand still, s begins at 1.

    Source: learnable weight scaling, Kang et al., Decoupling Representation and Classifier, ICLR 2020.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = LinearHead(dim, num_classes).requires_grad_(False)
        self.classes = self.linear.classes
        self.scale_C = nn.Parameter(torch.ones(len(self.classes)))

    def forward(self, feature: SharedFeature) -> ProductLogits:
        rows = Rows(self.scale_C[:, None] * self.linear.weight, self.scale_C * self.linear.bias)
        return ProductLogits(feature.all_BD, rows, self.classes, feature.shares)
