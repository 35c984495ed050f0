"""IResNet, the face backbone of ArcFace, under the parameter names of InsightFace's arcface_torch.

Shapes: B batch, H W image, h w map (H/16, W/16 rounded up: 7x7 at 112x112).
"""

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


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

    The layers after the map (`fc`, `features` in arcface_torch) are `facelt.models.embedding.LinearBatchNorm`, so that
    attention can stand between them. The stem does not pool and keeps the resolution; each stage halves it.
    Source: Deng et al., ArcFace, CVPR 2019 (the units it calls "improved residual"); arcface_torch's initialisation,
    so large that IResNet-100 overflows in eval mode until its running statistics have seen some batches.
    """

    def __init__(self, blocks: tuple[int, int, int, int], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        stages = [
            _stage(channels_in, channels, count)
            for channels_in, channels, count in zip((WIDTHS[0], *widths[:-1]), widths, blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(image_B3HW)))
        return self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


def _stage(channels_in: int, channels: int, count: int) -> nn.Sequential:
    first = IResNetBlock(channels_in, channels, stride=2)
    return nn.Sequential(first, *(IResNetBlock(channels, channels, stride=1) for _ in range(count - 1)))
