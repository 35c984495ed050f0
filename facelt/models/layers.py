"""Modulated attention: self-attention on the feature map, weighted by a learned distribution over its positions; and
the plain spatial attention it is compared with, which weighs the map itself.

Shapes: B batch, C channels, I inner channels, h w map, N = h * w positions.

What follows the feature map: from [B,C,h,w] to the feature [B,D] that memory and heads see.

Shapes: B batch, C channels, h w map, D feature.

Where in an image a class is seen: class activation maps of a linear classifier on the averaged map.

Shapes: B batch, C channels, h w map, H W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelt.config.registry import EMBEDDINGS, register_embedding


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


@register_embedding("linear_bn")
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


@register_embedding("fc_relu")
def _linear_relu(channels: int, dim: int, map_size: tuple[int, int] | None) -> LinearReLU:
    return LinearReLU(channels, dim)


@register_embedding("none")
def _pooled(channels: int, dim: int, map_size: tuple[int, int] | None) -> Pooled:
    return Pooled(channels)


def build_embedding(kind: str, channels: int, dim: int, map_size: tuple[int, int] | None) -> nn.Module:
    """The embedding layer of that kind; its attribute `dim` is D. Raises UserError on an unknown kind.

    `map_size` is None where the backbone's own linear layer reads the average.
    """
    return EMBEDDINGS.find(kind)(channels, dim, map_size)


# Of the map's mean: what lies above it is foreground.
SHARE = 0.75


def class_activation(map_BChw: torch.Tensor, weight_BC: torch.Tensor) -> torch.Tensor:
    """The map weighted by the classifier's row of a class, one each image, [B,h,w]: the logit is its mean and a bias.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016.
    """
    return torch.einsum("bchw,bc->bhw", map_BChw, weight_BC)


def foreground(activation_Bhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Which pixels of an image of (height, width) show the class, bool [B,H,W]; never none of them.

    The activation from its minimum up, in the image's size, is at least 0.75 of its mean there: Zhang et al., Bag of
    Tricks for Long-Tailed Visual Recognition, AAAI 2021, as their code reads it.
    """
    raised_Bhw = activation_Bhw - activation_Bhw.amin(dim=(1, 2), keepdim=True)
    raised_BHW = F.interpolate(raised_Bhw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return raised_BHW >= SHARE * raised_BHW.mean(dim=(1, 2), keepdim=True)
