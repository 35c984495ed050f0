"""Parameters by depth of every registered backbone, with and without branches."""

import re

import pytest
import torch
from torch import nn

from facelt.config.registry import BACKBONES
from facelt.models.branched import BranchSpec
from facelt.models.network import Network, build_network, parameters_by_depth

BLOCK = re.compile(r"\.(?:layer|denseblock|transition)(\d)\.")


def build(backbone: str, split: str | None = None, **options) -> Network:
    branches = None if split is None else BranchSpec(3, split)
    options = {"attention": True, "embedding": "linear_bn", **options}
    with torch.device("meta"):
        return build_network(backbone, image_size=(32, 32), dim=4, branches=branches, **options)


def depths(network: Network) -> dict[str, int]:
    """Depth of each parameter by name, 0 for the stem."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameters_by_depth(network)
    return {names[id(parameter)]: depth for depth, group in enumerate(groups) for parameter in group}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_depths_follow_the_order_of_the_layers_and_hold_every_parameter_once(backbone):
    network = build(backbone)
    groups = parameters_by_depth(network)
    assert len(groups) >= 4
    assert all(groups)
    listed = [id(parameter) for group in groups for parameter in group]
    parts = (network.backbone, network.attention, network.embedding)
    assert listed == [id(parameter) for part in parts for parameter in part.parameters()]
    # No depth but the last one, which has the embedding, has most of the backbone.
    total = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert all(sum(parameter.numel() for parameter in group) < 0.8 * total for group in groups[:-1])


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if re.match("i?res|dense", name)])
def test_depths_are_those_in_the_names_of_the_layers(backbone):
    result = depths(build(backbone))
    last = max(result.values())
    assert last == (3 if backbone in ("resnet32", "densenet_bc100") else 4)
    for name, depth in result.items():
        match = BLOCK.search(name)
        is_stem = re.match(r"backbone\.(conv[01]|bn1|prelu)\.", name)
        assert depth == (int(match[1]) if match else 0 if is_stem else last), name


@pytest.mark.parametrize("split", ["none", "layer1", "layer3", "batch_norm", "conv"])
def test_the_same_layers_of_all_branches_have_one_depth(split):
    plain, branched = depths(build("resnet10")), build("resnet10", split)
    result = depths(branched)
    assert result.keys() == {name for name, _ in branched.named_parameters()}
    for name, depth in result.items():
        layer = re.sub(r"(trunk|branches\.\d+)\.", "", name)
        # A layer after the backbone, and each branch's attention and embedding, are in the last group.
        assert depth == plain.get(layer, 4), name


def test_a_branch_of_the_last_block_is_one_deeper():
    result = depths(build("resnet32", "last_block"))
    assert {depth for name, depth in result.items() if ".layer3." in name and "trunk" in name} == {3}
    assert {depth for name, depth in result.items() if "backbone.branches" in name} == {4}


class _Listed(nn.Module):
    """A backbone whose blocks are in a list named `layers`, wrapped in another such list each."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        wrapped = [nn.Module() for _ in range(3)]
        for module in wrapped:
            module.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        block = nn.Module()
        block.layers = nn.ModuleList([wrapped[1]])
        self.layers = nn.ModuleList([wrapped[0], block])
        self.conv_sep = wrapped[2]


def test_a_list_of_layers_stands_for_its_members():
    network = Network(_Listed(), None, nn.Identity())
    names = [[name for name, depth in depths(network).items() if depth == number] for number in (0, 1)]
    assert [name.removeprefix("backbone.") for name in names[0]] == [
        "scale",
        "layers.0.layers.0.weight",
        "layers.0.layers.0.bias",
        "layers.0.layers.1.weight",
        "layers.0.layers.1.bias",
    ]
    assert {".".join(name.split(".")[1:3]) for name in names[1]} == {"layers.1", "conv_sep.layers"}
