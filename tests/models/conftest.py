"""Reference IResNet for the tests of backbones and of pretrained weights."""

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
