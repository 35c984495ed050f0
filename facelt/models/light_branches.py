"""Branches that share a whole backbone and add one light layer each, as ResLT's do (Cui et al., TPAMI 2022).

Shapes: B batch, C channels, h w map.
"""

from torch import nn


def pointwise(channels: int) -> nn.Conv2d:
    """A 1x1 convolution, C -> C: three of them are what the released code writes as one to 3 C channels."""
    return nn.Conv2d(channels, channels, kernel_size=1, bias=False)


# Each takes the channels of the backbone's last map and returns a layer [B,C,h,w] -> [B,C,h,w].
LIGHT_BRANCHES = {"batch_norm": nn.BatchNorm2d, "conv": pointwise}
