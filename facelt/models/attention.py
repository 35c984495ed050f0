"""Modulated attention: self-attention on the feature map, weighted by a learned distribution over its positions; and
the plain spatial attention it is compared with, which weighs the map itself.

Shapes: B batch, C channels, I inner channels, h w map, N = h * w positions.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ModulatedAttention(nn.Module):
    """out = x + mask * SA(x), a map [B,C,h,w] in and out (Liu et al., OLTR, CVPR 2019, equation 5).

    SA is a non-local block (Wang et al., CVPR 2018; embedded Gaussian, half the channels inside, unscaled dot product).
    Its output convolution starts at zero: added to a trained network, the block changes nothing at first. The mask is
    the softmax over positions of one linear layer on the whole map, hence the fixed map size.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        inner, positions = channels // 2, height * width
        self.map_size = (height, width)
        self.g = nn.Conv2d(channels, inner, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.conv_mask = nn.Conv2d(inner, channels, 1, bias=False)
        self.fc_spatial = nn.Linear(channels * positions, positions)
        nn.init.zeros_(self.conv_mask.weight)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError when the map is not of the size the layer was built for."""
        mask_B1hw = _mask(self.fc_spatial, map_BChw, self.map_size)
        query_BNI, key_BNI, value_BNI = (
            conv(map_BChw).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g)
        )
        attended_BNI = F.scaled_dot_product_attention(query_BNI, key_BNI, value_BNI, scale=1.0)
        attended_BIhw = attended_BNI.transpose(1, 2).unflatten(2, self.map_size)
        return map_BChw + mask_B1hw * self.conv_mask(attended_BIhw)


class SpatialAttention(nn.Module):
    """out = x + mask * x: modulated attention without its self-attention."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.map_size = (height, width)
        self.fc_spatial = nn.Linear(channels * height * width, height * width)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError when the map is not of the size the layer was built for."""
        return map_BChw + _mask(self.fc_spatial, map_BChw, self.map_size) * map_BChw


def _mask(linear: nn.Linear, map_BChw: Tensor, map_size: tuple[int, int]) -> Tensor:
    """The learned distribution over positions, [B,1,h,w]."""
    check_map_size(map_BChw, map_size)
    return linear(map_BChw.flatten(1)).softmax(dim=1).unflatten(1, (1, *map_size))


ATTENTIONS = {"modulated": ModulatedAttention, "spatial": SpatialAttention}


def check_map_size(map_BChw: Tensor, built_for: tuple[int, int]) -> None:
    """ValueError unless the map has the (height, width) a layer that reads every position was built for."""
    found = tuple(map_BChw.shape[2:])
    if found != built_for:
        raise ValueError(
            f"the feature map is {found[0]}x{found[1]}, the network was built for {built_for[0]}x{built_for[1]}: "
            "give images of the configured size"
        )
