"""A network whose branches are one linear layer each, on images of 2 x 2 pixels."""

import torch
from torch import nn

from facelt.models.branched import BranchedBackbone, BranchedEmbedding
from facelt.models.network import Network


class _Feature(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, dim))
        self.dim = dim


def branched_network(count: int, dim: int) -> Network:
    """Every branch has different weights."""
    torch.manual_seed(0)
    backbone = BranchedBackbone(nn.Identity(), [nn.Identity() for _ in range(count)])
    return Network(backbone, None, BranchedEmbedding(_Feature(dim) for _ in range(count)), count)
