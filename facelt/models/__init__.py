"""Backbones, the embedding layer and modulated attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from facelt.models.cifar_resnet import WIDTHS as CIFAR_WIDTHS
from facelt.models.cifar_resnet import resnet32
from facelt.models.densenet import WIDTHS as DENSENET_WIDTHS
from facelt.models.densenet import densenet_bc100
from facelt.models.iresnet import IResNet
from facelt.models.resnet import WIDTHS, resnet10, resnet50, resnet152, resnext50


@dataclass(frozen=True)
class Backbone:
    """One row of the table: how to build it and the shape of the map [B, channels, H/stride, W/stride] it returns.

    `build(widths)` makes it with other numbers of channels than `widths` in its layers layer1, layer2, ...; the map's
    channels change as the last one does.
    """

    build: Callable[..., nn.Module]
    channels: int
    stride: int
    widths: tuple[int, ...] = WIDTHS
    # IResNet's linear layer reads the whole map, position by position; a ResNet's reads the map's average.
    flattened: bool = False

    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the map for an image of (height, width): every halving rounds up, so one division does."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)


BACKBONES: dict[str, Backbone] = {
    "resnet10": Backbone(resnet10, channels=512, stride=32),
    "resnet32": Backbone(resnet32, channels=64, stride=4, widths=CIFAR_WIDTHS),
    "resnet50": Backbone(resnet50, channels=2048, stride=32),
    "resnet152": Backbone(resnet152, channels=2048, stride=32),
    "resnext50": Backbone(resnext50, channels=2048, stride=32),
    "densenet_bc100": Backbone(densenet_bc100, channels=342, stride=4, widths=DENSENET_WIDTHS),
    "iresnet18": Backbone(partial(IResNet, (2, 2, 2, 2)), channels=512, stride=16, flattened=True),
    "iresnet34": Backbone(partial(IResNet, (3, 4, 6, 3)), channels=512, stride=16, flattened=True),
    "iresnet50": Backbone(partial(IResNet, (3, 4, 14, 3)), channels=512, stride=16, flattened=True),
    "iresnet100": Backbone(partial(IResNet, (3, 13, 30, 3)), channels=512, stride=16, flattened=True),
    "iresnet200": Backbone(partial(IResNet, (6, 26, 60, 6)), channels=512, stride=16, flattened=True),
}
