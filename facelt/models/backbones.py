"""Convolutional backbones up to their last feature map: ResNet, CIFAR ResNet, DenseNet-BC and IResNet.

Shapes: B batch, H W image, C channels, h w map.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from facelt.config.registry import BACKBONES
from facelt.errors import UserError

RESNET_WIDTHS = (64, 128, 256, 512)
CIFAR_WIDTHS = (16, 32, 64)
_GROWTH, _DENSE_BLOCKS = 12, (16, 16, 16)


@dataclass(frozen=True)
class Backbone:
    """A registered backbone: its builder and the shape of its map [B, channels, H/stride, W/stride].

    `build(widths)` changes the numbers of channels of layer1, layer2, ... from the default `widths`; those of the map
    change in proportion to the last one. Without `widths` they are fixed. `build(width=...)` takes one of the
    `multipliers`, which are the allowed values of `model.width`.

    `embedding` is the registered layer that a stage uses by default. With `flattened` it reads every position of the
    map, as in IResNet, instead of its average.
    """

    build: Callable[..., nn.Module]
    channels: int
    stride: int
    widths: tuple[int, ...] = RESNET_WIDTHS
    multipliers: tuple[int, ...] = ()
    flattened: bool = False
    embedding: str = "linear_bn"

    def at_width(self, width: int | None) -> "Backbone":
        """Returns the backbone of that width, None being its default. Raises UserError for one that it does not have.

        The channels of the map do not depend on it.
        """
        if width is None:
            return self
        if not self.multipliers:
            raise UserError("the backbone has only one width; remove the key")
        if width not in self.multipliers:
            allowed = ", ".join(map(str, self.multipliers))
            raise UserError(f"the backbone has the widths {allowed}, not {width}")
        return replace(self, build=partial(self.build, width=width))

    def branch_widths(self, split: str, width: float) -> tuple[int, ...]:
        """Returns the channels of layer1, layer2, ... on the way through a trunk and one branch.

        Layers after a `split` at a layer have `width` times their channels; other splits leave the channels unchanged.
        """
        shared = int(split.removeprefix("layer")) if split.startswith("layer") else len(self.widths)
        return (*self.widths[:shared], *(int(channels * width) for channels in self.widths[shared:]))

    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) of the map of an image of (height, width), rounded up at each halving."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)


def register_backbone(name: str, **shape: Any) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Returns a decorator that registers a builder with the other fields of `Backbone`."""

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        BACKBONES.register(name)(Backbone(build, **shape))
        return build

    return decorate


class ResNetTrunk(ResNet):
    """torchvision's ResNet up to layer4: image [B,3,H,W] -> map [B,C,ceil(H/32),ceil(W/32)].

    The children keep torchvision's names (conv1, bn1, layer1..layer4): its state dicts fit, apart from `fc`.
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        widths: Sequence[int] = RESNET_WIDTHS,
        **options: int,
    ) -> None:
        """`widths` are the planes of the four layers; the options are torchvision's."""
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
    """Builds one basic block per stage, 512 channels: the backbone of OLTR (CVPR 2019) on ImageNet-LT."""
    return ResNetTrunk(BasicBlock, (1, 1, 1, 1), widths)


@register_backbone("resnet50", channels=2048, stride=32)
def resnet50(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """Builds ResNet-50, 2048 channels."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths)


@register_backbone("resnet152", channels=2048, stride=32)
def resnet152(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """Builds ResNet-152, 2048 channels: the backbone of OLTR (CVPR 2019) on Places-LT."""
    return ResNetTrunk(Bottleneck, (3, 8, 36, 3), widths)


@register_backbone("resnext50", channels=2048, stride=32)
def resnext50(widths: Sequence[int] = RESNET_WIDTHS) -> ResNetTrunk:
    """Builds ResNeXt-50 with 32 groups of 4 channels, 2048 channels: Xie et al., CVPR 2017."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths, groups=32, width_per_group=4)


class PaddedShortcut(nn.Module):
    """The shortcut of a block that halves the map: every second position, padded with zero channels on both sides."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.before = (channels - channels_in) // 2
        self.after = channels - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """The small ResNet for CIFAR: image [B,3,H,W] -> map [B,C,ceil(H/4),ceil(W/4)].

    A 3 x 3 stem of 16 channels without pooling and three stages of basic blocks, of which the second and third halve
    the map; shortcuts have no parameters (option A). Source: He et al., Deep Residual Learning for Image Recognition,
    CVPR 2016, section 4.2; initialised as in LDAM-DRW's code (Kaiming, fan-in).
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
    """Builds three stages of five blocks: 31 convolutions, and the classifier as the 32nd layer."""
    return CifarResNet(5, widths)


# The map: 24 channels from the stem, 16 x 12 more from each block, half of all kept between two blocks.
@register_backbone("densenet_bc100", channels=342, stride=4, widths=())
def densenet_bc100() -> nn.Sequential:
    """Builds DenseNet-BC for small images, 100 layers, growth rate 12: image [B,3,H,W] -> map [B,342,h,w].

    These are torchvision's blocks under its names, behind a stem that keeps the resolution. Source: Huang et al.,
    Densely Connected Convolutional Networks, CVPR 2017; the backbone of ODIN (ICLR 2018) and of the comparison in
    OLTR's Table 2.
    """
    features = DenseNet(_GROWTH, _DENSE_BLOCKS, num_init_features=2 * _GROWTH).features
    children = OrderedDict(features.named_children())
    for name in ("norm0", "relu0", "pool0"):
        del children[name]
    children["conv0"] = nn.Conv2d(3, 2 * _GROWTH, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(children["conv0"].weight)
    for name, child in children.items():
        if name.startswith("transition"):
            child.pool = nn.AvgPool2d(2, ceil_mode=True)
    return nn.Sequential(OrderedDict(children, relu5=nn.ReLU(inplace=True)))


class IResNetBlock(nn.Module):
    """Residual block with batch norm before each convolution and after the last, PReLU, no final activation."""

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
    """IResNet up to its last batch norm, under arcface_torch's parameter names: image [B,3,H,W] -> map [B,C,h,w].

    The stem keeps the resolution and each stage halves it: 7 x 7 x 512 at 112 x 112. The layers after the map (`fc`,
    `features` in arcface_torch) are `facelt.models.layers.LinearBatchNorm`: attention can be inserted before them.
    Source: ArcFace, Deng et al., CVPR 2019 ("improved residual" units). The initialisation is arcface_torch's, so large
    that IResNet-100 overflows in eval mode until its running statistics have seen a few batches.
    """

    def __init__(self, blocks: tuple[int, int, int, int], widths: Sequence[int] = RESNET_WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, RESNET_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(RESNET_WIDTHS[0])
        self.prelu = nn.PReLU(RESNET_WIDTHS[0])
        stages = [
            _iresnet_stage(channels_in, channels, count)
            for channels_in, channels, count in zip((RESNET_WIDTHS[0], *widths[:-1]), widths, blocks, strict=True)
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
