"""ResNets that end at their last feature map: torchvision's class without its pooling and classifier.

Shapes: B batch, H W image, C channels, h w map.

The small ResNet for CIFAR's 32 x 32 images.

Shapes: B batch, H W image, C channels, h w map.

DenseNet-BC for small images: torchvision's blocks behind a stem that keeps the resolution.

Shapes: B batch, H W image, h w map (H/4, W/4 rounded up).

IResNet, the face backbone of ArcFace, under the parameter names of InsightFace's arcface_torch.

Shapes: B batch, H W image, h w map (H/16, W/16 rounded up: 7x7 at 112x112).

Backbones, the embedding layer and modulated attention.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from facelt.config.registry import BACKBONES
from facelt.errors import UserError

RESNET_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Backbone:
    """A registered backbone: its builder and the shape of the map [B, channels, H/stride, W/stride] it returns.

    `build(widths)` makes it with other numbers of channels than `widths` in its layers layer1, layer2, ...; the map's
    channels change as the last one does.
    """

    build: Callable[..., nn.Module]
    channels: int
    stride: int
    widths: tuple[int, ...] = RESNET_WIDTHS
    # IResNet's linear layer reads the whole map, position by position; a ResNet's reads the map's average.
    flattened: bool = False

    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the map for an image of (height, width): every halving rounds up, so one division does."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)


def register_backbone(name: str, **shape: Any) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator that registers a builder, `build(widths)`, with the other fields of `Backbone`."""

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        BACKBONES.register(name)(Backbone(build, **shape))
        return build

    return decorate


class ResNetTrunk(ResNet):
    """torchvision's ResNet up to layer4: image [B,3,H,W] -> map [B,C,ceil(H/32),ceil(W/32)].

    The children keep torchvision's names (conv1, bn1, layer1..layer4), so that its state dicts fit but for `fc`.
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        widths: Sequence[int] = RESNET_WIDTHS,
        **options: int,
    ) -> None:
        """`widths` are the four layers' planes; the options are torchvision's."""
        self._widths = dict(zip(RESNET_WIDTHS, widths, strict=True))
        super().__init__(block, list(blocks), **options)
        del self.avgpool, self.fc

    def _make_layer(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, *args: int, **options: int
    ) -> nn.Sequential:
        return super()._make_layer(block, self._widths[planes], *args, **options)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image_B3HW))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@register_backbone("resnet10", channels=512, stride=32)
def resnet10(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """One basic block in each stage, 512 channels: the backbone of OLTR (CVPR 2019) on ImageNet-LT."""
    return ResNetTrunk(BasicBlock, (1, 1, 1, 1), widths)


@register_backbone("resnet50", channels=2048, stride=32)
def resnet50(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """ResNet-50, 2048 channels."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths)


@register_backbone("resnet152", channels=2048, stride=32)
def resnet152(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """ResNet-152, 2048 channels: the backbone of OLTR (CVPR 2019) on Places-LT."""
    return ResNetTrunk(Bottleneck, (3, 8, 36, 3), widths)


@register_backbone("resnext50", channels=2048, stride=32)
def resnext50(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """ResNeXt-50 with 32 groups of 4 channels, 2048 channels: Xie et al., CVPR 2017."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths, groups=32, width_per_group=4)


CIFAR_WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """The identity where a block halves the map: every second position, new channels of zeros on both sides."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.before = (channels - channels_in) // 2
        self.behind = channels - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class CifarResNet(nn.Module):
    """Image [B,3,H,W] -> map [B,C,ceil(H/4),ceil(W/4)]: a 3 x 3 stem of 16 channels, three stages of basic blocks.

    The stem does not pool, the second and third stage halve the map, and no shortcut has parameters (option A).
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2; initialised as LDAM-DRW's
    released code does it, by He's rule with the inputs of each convolution.
    """

    def __init__(self, blocks: int, widths: Sequence[int] = CIFAR_WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CIFAR_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CIFAR_WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _cifar_stage(CIFAR_WIDTHS[0], widths[0], blocks, stride=1)
        self.layer2 = _cifar_stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _cifar_stage(widths[1], widths[2], blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image_B3HW)))
        return self.layer3(self.layer2(self.layer1(x)))


def _cifar_stage(channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
    shortcut = PaddedShortcut(channels_in, channels) if stride > 1 else None
    first = BasicBlock(channels_in, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(count - 1)))


@register_backbone("resnet32", channels=64, stride=4, widths=CIFAR_WIDTHS)
def resnet32(widths: Sequence[int] = CIFAR_WIDTHS) -> CifarResNet:
    """Three stages of five blocks: 31 convolutions, and the classifier for the thirty-second layer."""
    return CifarResNet(5, widths)


GROWTH, BLOCKS = 12, (16, 16, 16)
DENSENET_WIDTHS = (342,)
"""Channels of the map: 24 of the stem, 16 x 12 more from each block, half of all kept between two blocks."""


@register_backbone("densenet_bc100", channels=342, stride=4, widths=DENSENET_WIDTHS)
def densenet_bc100(widths: Sequence[int] = DENSENET_WIDTHS) -> nn.Sequential:
    """100 layers, growth rate 12: image [B,3,H,W] -> map [B,342,h,w].

    The parts keep torchvision's names. Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017; the
    backbone on which ODIN (ICLR 2018) and the comparison in OLTR's Table 2 detect unknown images.

    Raises UserError for other `widths`: a DenseNet's follow from its growth.
    """
    if tuple(widths) != DENSENET_WIDTHS:
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


IRESNET_WIDTHS = (64, 128, 256, 512)


class IResNetBlock(nn.Module):
    """Batch norm before each convolution and after the last, PReLU between, no activation after the sum."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return residual + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """IResNet up to its last batch norm: image [B,3,H,W] -> map [B,C,h,w], C 512.

    The layers after the map (`fc`, `features` in arcface_torch) are `facelt.models.layers.LinearBatchNorm`, so that
    attention can stand between them. The stem does not pool and keeps the resolution; each stage halves it.
    Source: Deng et al., ArcFace, CVPR 2019 (the units it calls "improved residual"); arcface_torch's initialisation,
    so large that IResNet-100 overflows in eval mode until its running statistics have seen some batches.
    """

    def __init__(self, blocks: tuple[int, int, int, int], widths: Sequence[int] = IRESNET_WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, IRESNET_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(IRESNET_WIDTHS[0])
        self.prelu = nn.PReLU(IRESNET_WIDTHS[0])
        stages = [
            _iresnet_stage(channels_in, channels, count)
            for channels_in, channels, count in zip((IRESNET_WIDTHS[0], *widths[:-1]), widths, blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(image_B3HW)))
        return self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


def _iresnet_stage(channels_in: int, channels: int, count: int) -> nn.Sequential:
    first = IResNetBlock(channels_in, channels, stride=2)
    return nn.Sequential(first, *(IResNetBlock(channels, channels, stride=1) for _ in range(count - 1)))


_IRESNET_BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
for _name, _blocks in _IRESNET_BLOCKS.items():
    register_backbone(_name, channels=512, stride=16, flattened=True)(partial(IResNet, _blocks))
