"""ResNets that end at their last feature map: torchvision's class without its pooling and classifier.

Shapes: B batch, H W image, C channels, h w map.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

WIDTHS = (64, 128, 256, 512)


class ResNetTrunk(ResNet):
    """torchvision's ResNet up to layer4: image [B,3,H,W] -> map [B,C,ceil(H/32),ceil(W/32)].

    The children keep torchvision's names (conv1, bn1, layer1..layer4), so that its state dicts fit but for `fc`.
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        widths: Sequence[int] = WIDTHS,
        **options: int,
    ) -> None:
        """`widths` are the four layers' planes; the options are torchvision's."""
        self._widths = dict(zip(WIDTHS, widths, strict=True))
        super().__init__(block, list(blocks), **options)
        del self.avgpool, self.fc

    def _make_layer(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, *args: int, **options: int
    ) -> nn.Sequential:
        return super()._make_layer(block, self._widths[planes], *args, **options)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image_B3HW))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet10(widths: Sequence[int] = WIDTHS) -> ResNetTrunk:
    """One basic block in each stage, 512 channels: the backbone of OLTR (CVPR 2019) on ImageNet-LT."""
    return ResNetTrunk(BasicBlock, (1, 1, 1, 1), widths)


def resnet50(widths: Sequence[int] = WIDTHS) -> ResNetTrunk:
    """ResNet-50, 2048 channels."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths)


def resnet152(widths: Sequence[int] = WIDTHS) -> ResNetTrunk:
    """ResNet-152, 2048 channels: the backbone of OLTR (CVPR 2019) on Places-LT."""
    return ResNetTrunk(Bottleneck, (3, 8, 36, 3), widths)


def resnext50(widths: Sequence[int] = WIDTHS) -> ResNetTrunk:
    """ResNeXt-50 with 32 groups of 4 channels, 2048 channels: Xie et al., CVPR 2017."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3), widths, groups=32, width_per_group=4)
