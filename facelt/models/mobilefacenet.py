"""MobileFaceNet and its embedding by global depthwise convolution, under arcface_torch's parameter names.

Shapes: B batch, H W image, C channels, h w map, D feature. Source: Chen et al., MobileFaceNets, CCBR 2018.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from facelt.config.registry import register_embedding
from facelt.models.backbones import register_backbone
from facelt.models.layers import check_map_size

# Blocks of the four residual stages by width; a first stage of one block is a single convolution.
_BLOCKS = {1: (1, 4, 6, 2), 2: (1, 4, 6, 2), 4: (2, 8, 12, 4)}
_MAP_CHANNELS = 512


class LayerBlock(nn.Module):
    """Modules in sequence, named `layers`, from map to map; with `residual` their input is added to the result."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileFaceNet(nn.Module):
    """MobileFaceNet up to `conv_sep`: image [B,3,H,W] -> map [B,512,ceil(H/16),ceil(W/16)].

    Width 1 is the network of the paper, 2 arcface_torch's `mbf`, and 4 its `mbf_large`, with twice as many blocks. The
    width multiplies the channels between the blocks, not those inside them. The initialisation is arcface_torch's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow, wide = 64 * width, 128 * width
        first, second, third, fourth = _BLOCKS[width]
        self.layers = nn.Sequential(
            _convolution(3, narrow, 3, stride=2),
            # 64 groups at any width: depthwise only at width 1.
            _convolution(narrow, narrow, 3, groups=64) if first == 1 else _stage(narrow, 128, first),
            _bottleneck(narrow, narrow, 128, stride=2),
            _stage(narrow, 128, second),
            _bottleneck(narrow, wide, 256, stride=2),
            _stage(wide, 256, third),
            _bottleneck(wide, wide, 512, stride=2),
            _stage(wide, 256, fourth),
        )
        self.conv_sep = _convolution(wide, _MAP_CHANNELS)
        _initialise(self)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.conv_sep(self.layers(image_B3HW))


@register_embedding("gdc")
class GlobalDepthwiseConvolution(nn.Module):
    """One weight per channel and position of the map, batch norm, linear layer, batch norm: MobileFaceNet's embedding.

    With `map_size` it reads the map (C,h,w), in place of an average pool; without, the averaged map.
    """

    def __init__(self, channels: int, dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dim = dim
        self.map_size = map_size
        self.features = LayerBlock(
            LayerBlock(
                nn.Conv2d(channels, channels, map_size or (1, 1), groups=channels, bias=False),
                nn.BatchNorm2d(channels),
            ),
            nn.Flatten(),
            nn.Linear(channels, dim, bias=False),
            nn.BatchNorm1d(dim),
        )
        _initialise(self)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Raises ValueError if a map to be read whole does not have the configured size."""
        if self.map_size is None:
            return self.features(F.adaptive_avg_pool2d(map_BChw, 1))
        check_map_size(map_BChw, self.map_size)
        return self.features(map_BChw)


@register_backbone(
    "mobilefacenet",
    channels=_MAP_CHANNELS,
    stride=16,
    widths=(),
    multipliers=tuple(_BLOCKS),
    flattened=True,
    embedding="gdc",
)
def mobilefacenet(width: int = 2) -> MobileFaceNet:
    """Builds MobileFaceNet of width 1, 2 or 4; by default 2, arcface_torch's `mbf`."""
    return MobileFaceNet(width)


def _convolution(
    channels_in: int, channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activation: bool = True
) -> LayerBlock:
    """Returns a padded convolution with batch norm and, with `activation`, PReLU."""
    convolution = nn.Conv2d(
        channels_in, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return LayerBlock(convolution, nn.BatchNorm2d(channels), *([nn.PReLU(channels)] if activation else []))


def _bottleneck(channels_in: int, channels: int, inner: int, *, stride: int = 1, residual: bool = False) -> LayerBlock:
    """Returns MobileNetV2's inverted bottleneck: to `inner` channels, a depthwise convolution, to `channels`."""
    return LayerBlock(
        _convolution(channels_in, inner),
        _convolution(inner, inner, 3, stride=stride, groups=inner),
        _convolution(inner, channels, activation=False),
        residual=residual,
    )


def _stage(channels: int, inner: int, count: int) -> LayerBlock:
    return LayerBlock(*(_bottleneck(channels, channels, inner, residual=True) for _ in range(count)))


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
