"""Reference IResNet and MobileFaceNet for the tests of backbones and of pretrained weights."""

import pytest
import torch.nn.functional as F


@pytest.fixture(scope="session", name="plain_iresnet")
def fixture_plain_iresnet():
    """plain_iresnet(state, image, blocks) -> map."""
    return plain_iresnet


def plain_iresnet(state, image, blocks):
    """IResNet in eval mode straight from arcface_torch's parameter names."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    x = F.prelu(norm(F.conv2d(image, state["conv1.weight"], padding=1), "bn1"), state["prelu.weight"])
    for layer, count in enumerate(blocks, start=1):
        for i in range(count):
            at, stride = f"layer{layer}.{i}", 2 if i == 0 else 1
            y = F.conv2d(norm(x, f"{at}.bn1"), state[f"{at}.conv1.weight"], padding=1)
            y = F.prelu(norm(y, f"{at}.bn2"), state[f"{at}.prelu.weight"])
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1), f"{at}.bn3")
            if i == 0:
                x = norm(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = x + y
    return norm(x, "bn2")


def plain_mobilefacenet(state, image, blocks):
    """MobileFaceNet in eval mode straight from arcface_torch's parameter names: the map, and the embedding."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def convolution(x, at, stride=1, padding=0):
        weight = state[f"{at}.layers.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = norm(F.conv2d(x, weight, stride=stride, padding=padding, groups=groups), f"{at}.layers.1")
        slope = state.get(f"{at}.layers.2.weight")
        return x if slope is None else F.prelu(x, slope)

    def bottleneck(x, at, stride):
        x = convolution(convolution(x, f"{at}.layers.0"), f"{at}.layers.1", stride, padding=1)
        return convolution(x, f"{at}.layers.2")

    def stage(x, at, count):
        for i in range(count):
            x = x + bottleneck(x, f"{at}.layers.{i}", 1)
        return x

    x = convolution(image, "layers.0", 2, padding=1)
    x = convolution(x, "layers.1", 1, padding=1) if blocks[0] == 1 else stage(x, "layers.1", blocks[0])
    for number, count in enumerate(blocks[1:], start=1):
        x = stage(bottleneck(x, f"layers.{2 * number}", 2), f"layers.{2 * number + 1}", count)
    map_BChw = convolution(x, "conv_sep")
    pooled = convolution(map_BChw, "features.layers.0").flatten(1)
    return map_BChw, norm(pooled @ state["features.layers.2.weight"].T, "features.layers.3")
