"""DenseNet-BC for small images: torchvision's blocks behind a stem that keeps the resolution.

Shapes: B batch, H W image, h w map (H/4, W/4 rounded up).
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn
from torchvision.models.densenet import DenseNet

from facelt.errors import UserError

GROWTH, BLOCKS = 12, (16, 16, 16)
WIDTHS = (342,)
"""Channels of the map: 24 of the stem, 16 x 12 more from each block, half of all kept between two blocks."""


def densenet_bc100(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """100 layers, growth rate 12: image [B,3,H,W] -> map [B,342,h,w].

    The parts keep torchvision's names. Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017; the
    backbone on which ODIN (ICLR 2018) and the comparison in OLTR's Table 2 detect unknown images.

    Raises UserError for other `widths`: a DenseNet's follow from its growth.
    """
    if tuple(widths) != WIDTHS:
        raise UserError("densenet_bc100 has no other numbers of channels; leave out branches.width")
    whole = DenseNet(GROWTH, BLOCKS, num_init_features=2 * GROWTH).features
    parts = OrderedDict(whole.named_children())
    for name in ("norm0", "relu0", "pool0"):
        del parts[name]
    parts["conv0"] = nn.Conv2d(3, 2 * GROWTH, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(parts["conv0"].weight)
    for name, part in parts.items():
        if name.startswith("transition"):
            part.pool = nn.AvgPool2d(2, ceil_mode=True)
    return nn.Sequential(OrderedDict(parts, relu5=nn.ReLU(inplace=True)))
