"""The small ResNet for CIFAR's 32 x 32 images.

Shapes: B batch, H W image, C channels, h w map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

WIDTHS = (16, 32, 64)


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

    def __init__(self, blocks: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image_B3HW)))
        return self.layer3(self.layer2(self.layer1(x)))


def _stage(channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
    shortcut = PaddedShortcut(channels_in, channels) if stride > 1 else None
    first = BasicBlock(channels_in, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(count - 1)))


def resnet32(widths: Sequence[int] = WIDTHS) -> CifarResNet:
    """Three stages of five blocks: 31 convolutions, and the classifier for the thirty-second layer."""
    return CifarResNet(5, widths)
