"""DenseNet-BC-100 against a plain computation."""

import torch
import torch.nn.functional as F

from facelt.config.registry import BACKBONES
from facelt.models.backbones import densenet_bc100
from facelt.models.network import build_network


def test_it_equals_a_plain_computation():
    backbone = densenet_bc100().train()
    with torch.no_grad():
        backbone(torch.randn(4, 3, 8, 8))  # moves the running statistics off their start
    state, image = backbone.eval().state_dict(), torch.randn(2, 3, 10, 8)

    def norm_relu(x, at):
        values = (state[f"{at}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values).relu()

    x = F.conv2d(image, state["conv0.weight"], padding=1)
    for block in (1, 2, 3):
        for layer in range(1, 17):
            at = f"denseblock{block}.denselayer{layer}"
            y = F.conv2d(norm_relu(x, f"{at}.norm1"), state[f"{at}.conv1.weight"])
            x = torch.cat([x, F.conv2d(norm_relu(y, f"{at}.norm2"), state[f"{at}.conv2.weight"], padding=1)], dim=1)
        if block < 3:
            at = f"transition{block}"
            x = F.avg_pool2d(F.conv2d(norm_relu(x, f"{at}.norm"), state[f"{at}.conv.weight"]), 2, ceil_mode=True)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), norm_relu(x, "norm5"), rtol=1e-4, atol=1e-5)


def test_the_network_pools_its_map():
    network = build_network("densenet_bc100", image_size=(32, 32), attention=False, embedding="none")
    assert network.dim == BACKBONES["densenet_bc100"].channels == 342
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 342)
