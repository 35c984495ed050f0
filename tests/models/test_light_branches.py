"""Light branches: one layer each on a fully shared backbone."""

import pytest
import torch

from facelt.config.registry import BACKBONES
from facelt.config.train import BranchesConfig
from facelt.models.branched import LIGHT_BRANCHES, BranchSpec
from facelt.models.network import build_network

IMAGE = (32, 32)


def build(split: str, count: int = 3):
    branches = BranchSpec(count, split)
    return build_network("resnet10", image_size=IMAGE, attention=False, embedding="none", branches=branches)


@pytest.fixture
def images():
    return torch.randn(4, 3, *IMAGE, generator=torch.Generator().manual_seed(0))


def test_a_batch_norm_branch_normalises_the_last_map_and_pools_it(images):
    network = build("batch_norm").train()
    for branch in network.backbone.branches:
        torch.nn.init.normal_(branch.weight)
        torch.nn.init.normal_(branch.bias)
    map_BChw = network.backbone.trunk(images)
    mean_C = map_BChw.mean(dim=(0, 2, 3))
    deviation_C = (map_BChw.var(dim=(0, 2, 3), unbiased=False) + 1e-5).sqrt()
    feature_BKD = network(images)
    assert feature_BKD.shape == (4, 3, network.dim) == (4, 3, 512)
    for index, branch in enumerate(network.backbone.branches):
        # Normalising is affine in each channel, so it may follow the pooling.
        expected_BC = branch.weight * (map_BChw.mean(dim=(2, 3)) - mean_C) / deviation_C + branch.bias
        torch.testing.assert_close(feature_BKD[:, index], expected_BC, rtol=1e-4, atol=1e-4)


def test_a_convolution_branch_is_a_matrix_on_every_position(images):
    network = build("conv", count=2).train()
    pooled_BC = network.backbone.trunk(images).mean(dim=(2, 3))
    feature_BKD = network(images)
    for index, branch in enumerate(network.backbone.branches):
        torch.testing.assert_close(feature_BKD[:, index], pooled_BC @ branch.weight[:, :, 0, 0].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", LIGHT_BRANCHES)
def test_the_whole_backbone_is_shared_and_the_configuration_knows_the_name(split):
    network = build(split)
    shared = sum(p.numel() for p in network.backbone.trunk.parameters())
    assert shared == sum(p.numel() for p in BACKBONES["resnet10"].build().parameters())
    light = sum(p.numel() for p in network.parameters()) - shared
    assert light == 3 * {"batch_norm": 2 * 512, "conv": 512 * 512}[split]
    assert BranchesConfig(split=split).split == split
