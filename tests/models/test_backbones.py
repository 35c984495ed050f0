"""Every registered backbone: map size, depth, parameter count; IResNet against a plain computation."""

import pytest
import torch
import torch.nn.functional as F

from facelt.config.registry import BACKBONES
from facelt.models.backbones import CifarResNet, IResNet

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}


def basic_resnet10_parameters() -> int:
    """The stem and four basic blocks, each batch norm with two vectors."""
    total, channels_in = 3 * 64 * 49 + 2 * 64, 64
    for channels in (64, 128, 256, 512):
        total += 9 * channels_in * channels + 9 * channels * channels + 4 * channels
        total += (channels_in * channels + 2 * channels) * (channels != channels_in)
        channels_in = channels
    return total


def iresnet_parameters(blocks) -> int:
    """The trunk without fc and features: stem, blocks of three batch norms and a PReLU, last batch norm."""
    total, channels_in = 3 * 64 * 9 + 2 * 64 + 64, 64
    for channels, count in zip((64, 128, 256, 512), blocks, strict=True):
        for _ in range(count):
            total += 2 * channels_in + 9 * channels_in * channels + 9 * channels * channels + 5 * channels
            channels_in = channels
        first_in = max(channels // 2, 64)
        total += first_in * channels + 2 * channels
    return total + 2 * 512


def cifar_resnet_parameters(blocks: int) -> int:
    """The stem and three stages of basic blocks whose shortcuts have no parameters."""
    total, channels_in = 3 * 16 * 9 + 2 * 16, 16
    for channels in (16, 32, 64):
        total += 9 * channels * (channels_in + (2 * blocks - 1) * channels) + 2 * blocks * 2 * channels
        channels_in = channels
    return total


# torchvision publishes 25,557,032, 60,192,808 and 25,028,904 with a classifier of 2048 x 1000 + 1000.
PARAMETERS = {
    "resnet10": basic_resnet10_parameters(),
    "resnet32": cifar_resnet_parameters(5),
    "resnet50": 25_557_032 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50": 25_028_904 - 2_049_000,
    # Ports of the authors' code count 769,162 with a classifier of 342 x 10 + 10.
    "densenet_bc100": 769_162 - 3_430,
    # `mbf` has 2,059,520, of which the embedding of 512 values has 288,768.
    "mobilefacenet": 2_059_520 - 512 * 49 - 2 * 512 - 512 * 512 - 2 * 512,
    **{name: iresnet_parameters(blocks) for name, blocks in BLOCKS.items()},
}
SIZES = {name: [(112, 112)] if name.startswith("iresnet") else [(112, 112), (64, 64), (224, 224)] for name in BACKBONES}
SIZES["resnet32"] = SIZES["densenet_bc100"] = [(32, 32), (64, 48)]


@pytest.mark.parametrize("name", BACKBONES)
def test_map_size_depth_and_parameter_count(name):
    spec = BACKBONES[name]
    backbone = spec.build()  # in training mode: with fresh statistics a hundred layers overflow
    parameters = sum(p.numel() for p in backbone.parameters())
    assert parameters == PARAMETERS.get(name, parameters)
    for size in SIZES[name]:
        with torch.no_grad():
            result = backbone(torch.randn(1, 3, *size))
        assert result.shape == (1, spec.channels, *spec.map_size(size))
        assert result.isfinite().all()


@pytest.mark.parametrize(("name", "millions"), [("iresnet18", 24.03), ("iresnet50", 43.59), ("iresnet100", 65.16)])
def test_iresnet_totals_are_the_published_ones(name, millions):
    total = iresnet_parameters(BLOCKS[name]) + 512 * 49 * 512 + 512 + 2 * 512
    assert round(total / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["resnet10", "resnet32", "densenet_bc100", "iresnet18"])
def test_the_map_size_rounds_up(name):
    spec = BACKBONES[name]
    backbone = spec.build().eval()
    for size in [(33, 65), (97, 112), (1, 40)]:
        with torch.inference_mode():
            assert tuple(backbone(torch.zeros(1, 3, *size)).shape[2:]) == spec.map_size(size)


def test_resnet32_has_the_published_size():
    """He et al., CVPR 2016, table 6: 0.46 million with a classifier of ten classes."""
    assert round((cifar_resnet_parameters(5) + 64 * 10 + 10) / 1e6, 2) == 0.46


def test_a_resnet_for_cifar_equals_a_plain_computation():
    backbone = CifarResNet(2).train()
    with torch.no_grad():
        backbone(torch.randn(4, 3, 16, 16))  # moves the running statistics off their start
    state, image = backbone.eval().state_dict(), torch.randn(2, 3, 17, 16)

    def conv_norm(x, conv, norm, stride):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, *(state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    x = conv_norm(image, "conv1", "bn1", 1).relu()
    for layer in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = conv_norm(y, f"{at}.conv2", f"{at}.bn2", 1)
            if stride == 2:
                quarter = x.new_zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([quarter, x[:, :, ::2, ::2], quarter], dim=1)
            x = (x + y).relu()
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), x, rtol=1e-4, atol=1e-5)


def test_a_resnet_for_cifar_starts_with_the_variance_of_its_inputs():
    weight = CifarResNet(5).layer3[4].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_iresnet_equals_a_plain_computation(plain_iresnet):
    blocks = (1, 2, 1, 1)
    backbone = IResNet(blocks).train()
    with torch.no_grad():
        backbone(torch.randn(4, 3, 48, 32))  # moves the running statistics off their start
        for p in backbone.parameters():
            p.add_(0.05 * torch.randn_like(p))
        image = torch.randn(2, 3, 48, 32)
        expected = plain_iresnet(backbone.state_dict(), image, blocks)
        torch.testing.assert_close(backbone.eval()(image), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
