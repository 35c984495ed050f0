"""Attention on the feature map, embedding layers, and class activation maps.

Shapes: B batch, C channels, I inner channels, H W image, h w map, N = h * w positions, D feature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelt.config.registry import register_embedding

# Pixels whose activation is at least this fraction of its mean are foreground.
_FOREGROUND_THRESHOLD = 0.75


class ModulatedAttention(nn.Module):
    """out = x + mask * SA(x), from map to map [B,C,h,w] (Liu et al., OLTR, CVPR 2019, equation 5).

    SA is a non-local block (Wang et al., CVPR 2018; embedded Gaussian, half the channels inside, unscaled dot product).
    Its output convolution is initially zero: added to a trained network, the block changes nothing at first. The mask
    is the softmax over positions of a linear layer on the whole map, which fixes the map's size.
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
        """Raises ValueError if the map does not have the configured size."""
        mask_B1hw = _spatial_mask(self.fc_spatial, map_BChw, self.map_size)
        query_BNI, key_BNI, value_BNI = (
            conv(map_BChw).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g)
        )
        attended_BNI = F.scaled_dot_product_attention(query_BNI, key_BNI, value_BNI, scale=1.0)
        attended_BIhw = attended_BNI.transpose(1, 2).unflatten(2, self.map_size)
        return map_BChw + mask_B1hw * self.conv_mask(attended_BIhw)


class SpatialAttention(nn.Module):
    """out = x + mask * x: modulated attention without the self-attention, its baseline."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.map_size = (height, width)
        self.fc_spatial = nn.Linear(channels * height * width, height * width)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError if the map does not have the configured size."""
        return map_BChw + _spatial_mask(self.fc_spatial, map_BChw, self.map_size) * map_BChw


ATTENTIONS = {"modulated": ModulatedAttention, "spatial": SpatialAttention}


def _spatial_mask(linear: nn.Linear, map_BChw: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Returns the learned distribution over positions, [B,1,h,w]."""
    check_map_size(map_BChw, map_size)
    return linear(map_BChw.flatten(1)).softmax(dim=1).unflatten(1, (1, *map_size))


def check_map_size(map_BChw: Tensor, expected: tuple[int, int]) -> None:
    """Raises ValueError unless the map has the (height, width) of a layer that reads every position."""
    size = tuple(map_BChw.shape[2:])
    if size != expected:
        raise ValueError(
            f"the feature map is {size[0]}x{size[1]}, the network needs {expected[0]}x{expected[1]}: "
            "use images of the configured size"
        )


@register_embedding("linear_bn")
class LinearBatchNorm(nn.Module):
    """Linear layer and batch norm, no ReLU: the face embedding of ArcFace (CVPR 2019), with arcface_torch's names.

    With `map_size` the linear layer reads the flattened map (C,h,w), as in IResNet; without, its average. The batch
    norm's weight stays 1 as in arcface_torch: a cosine classifier would let it shrink or favour single dimensions.
    """

    def __init__(self, channels: int, dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dim = dim
        self.map_size = map_size
        self.fc = nn.Linear(channels if map_size is None else channels * map_size[0] * map_size[1], dim)
        self.features = nn.BatchNorm1d(dim)
        self.features.weight.requires_grad = False

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError if a map to be flattened does not have the configured size."""
        if self.map_size is None:
            return self.features(self.fc(_average_pool(map_BChw)))
        check_map_size(map_BChw, self.map_size)
        return self.features(self.fc(map_BChw.flatten(1)))


@register_embedding("fc_relu")
class LinearReLU(nn.Module):
    """Average pool, linear layer, ReLU: the layer that OLTR's released code adds before its memory."""

    def __init__(self, channels: int, dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(channels, dim)

    def forward(self, map_BChw: Tensor) -> Tensor:
        return F.relu(self.linear(_average_pool(map_BChw)))


@register_embedding("none")
class GlobalAveragePool(nn.Module):
    """The averaged map; D = C, whatever `dim`."""

    def __init__(self, channels: int, dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dim = channels

    def forward(self, map_BChw: Tensor) -> Tensor:
        return _average_pool(map_BChw)


def _average_pool(map_BChw: Tensor) -> Tensor:
    """Returns the mean over positions, [B,C]."""
    return F.adaptive_avg_pool2d(map_BChw, 1).flatten(1)


def class_activation_map(map_BChw: torch.Tensor, weight_BC: torch.Tensor) -> torch.Tensor:
    """Returns the map weighted by a linear classifier's weights of one class per image, [B,h,w].

    Its mean is the logit without the bias. Source: Zhou et al., Learning Deep Features for Discriminative Localization,
    CVPR 2016.
    """
    return torch.einsum("bchw,bc->bhw", map_BChw, weight_BC)


def foreground_mask(activation_Bhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns which pixels of an image of (height, width) show the class, bool [B,H,W]; at least one.

    The activation minus its minimum, resized to the image, is at least 0.75 of its mean there: Zhang et al., Bag of
    Tricks for Long-Tailed Visual Recognition, AAAI 2021, as in their code.
    """
    raised_Bhw = activation_Bhw - activation_Bhw.amin(dim=(1, 2), keepdim=True)
    raised_BHW = F.interpolate(raised_Bhw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return raised_BHW >= _FOREGROUND_THRESHOLD * raised_BHW.mean(dim=(1, 2), keepdim=True)
