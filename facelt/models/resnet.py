"""ResNets that end at their last feature map: torchvision's class without its pooling and classifier.

Shapes: B batch, H W image, C channels, h w map.
"""

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class ResNetTrunk(ResNet):
    """torchvision's ResNet up to layer4: image [B,3,H,W] -> map [B,C,ceil(H/32),ceil(W/32)].

    The children keep torchvision's names (conv1, bn1, layer1..layer4), so that its state dicts fit but for `fc`.
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int]) -> None:
        super().__init__(block, list(blocks))
        del self.avgpool, self.fc

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image_B3HW))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet10() -> ResNetTrunk:
    """One basic block in each stage, 512 channels: the backbone of OLTR (CVPR 2019) on ImageNet-LT."""
    return ResNetTrunk(BasicBlock, (1, 1, 1, 1))


def resnet50() -> ResNetTrunk:
    """ResNet-50, 2048 channels."""
    return ResNetTrunk(Bottleneck, (3, 4, 6, 3))


def resnet152() -> ResNetTrunk:
    """ResNet-152, 2048 channels: the backbone of OLTR (CVPR 2019) on Places-LT."""
    return ResNetTrunk(Bottleneck, (3, 8, 36, 3))
