"""Small backbone with a stem and three layers of one block, named like a ResNet's, for fast tests."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from facelt.models.backbones import Backbone

WIDTHS = (4, 8, 8)


def _block(channels_in: int, channels: int) -> nn.Sequential:
    layer = nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
    return nn.Sequential(layer)


def _build(widths: Sequence[int] = WIDTHS) -> nn.Module:
    channels = (4, *widths)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False), bn1=nn.BatchNorm2d(channels[0])
    )
    for number, (before, after) in enumerate(pairwise(channels), start=1):
        layers[f"layer{number}"] = _block(before, after)
    return nn.Sequential(layers)


BLOCKS = Backbone(_build, channels=WIDTHS[-1], stride=16, widths=WIDTHS)
