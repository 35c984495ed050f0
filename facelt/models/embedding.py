"""What follows the feature map: from [B,C,h,w] to the feature [B,D] that memory and heads see.

Shapes: B batch, C channels, h w map, D feature.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from facelt.errors import UserError
from facelt.models.attention import check_map_size


def average_pool(map_BChw: Tensor) -> Tensor:
    """Mean over positions, [B,C,h,w] -> [B,C]."""
    return F.adaptive_avg_pool2d(map_BChw, 1).flatten(1)


class Pooled(nn.Module):
    """The averaged map itself; D = C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dim = channels

    def forward(self, map_BChw: Tensor) -> Tensor:
        return average_pool(map_BChw)


class LinearReLU(nn.Module):
    """Average pool, linear, ReLU: the layer OLTR's released code adds before its memory."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(channels, dim)

    def forward(self, map_BChw: Tensor) -> Tensor:
        return F.relu(self.linear(average_pool(map_BChw)))


class LinearBatchNorm(nn.Module):
    """Linear and batch norm, no ReLU: the face embedding of ArcFace (CVPR 2019), under arcface_torch's names.

    With `map_size` the linear layer reads the flattened map (C,h,w), as IResNet's does; without, its average. The batch
    norm's weight stays 1 as in arcface_torch: a classifier of directions would leave it free to shrink or to pick axes.
    """

    def __init__(self, channels: int, dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dim = dim
        self.map_size = map_size
        self.fc = nn.Linear(channels if map_size is None else channels * map_size[0] * map_size[1], dim)
        self.features = nn.BatchNorm1d(dim)
        self.features.weight.requires_grad = False

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError when a map to be flattened is not of the size the layer was built for."""
        if self.map_size is None:
            return self.features(self.fc(average_pool(map_BChw)))
        check_map_size(map_BChw, self.map_size)
        return self.features(self.fc(map_BChw.flatten(1)))


# Each takes (channels, dim, map_size): map_size is None where the backbone's own linear layer reads the average.
EMBEDDINGS = {
    "linear_bn": LinearBatchNorm,
    "fc_relu": lambda channels, dim, map_size: LinearReLU(channels, dim),
    "none": lambda channels, dim, map_size: Pooled(channels),
}


def build_embedding(kind: str, channels: int, dim: int, map_size: tuple[int, int] | None) -> nn.Module:
    """The embedding layer of that kind; its attribute `dim` is D. Raises UserError on an unknown kind."""
    if kind not in EMBEDDINGS:
        raise UserError(f"unknown embedding {kind!r}: choose one of {', '.join(EMBEDDINGS)}")
    return EMBEDDINGS[kind](channels, dim, map_size)
