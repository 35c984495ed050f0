"""Branches of a stage: every split builds a network; widths apply to splits at a layer."""

import typing

import pytest
import torch
from pydantic import ValidationError

from facelt.config.train import BranchesConfig
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network


@pytest.mark.parametrize("split", typing.get_args(BranchesConfig.model_fields["split"].annotation))
def test_every_place_to_split_is_one_of_a_network(split):
    branches = BranchSpec(**BranchesConfig(split=split).model_dump())
    with torch.device("meta"):
        network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none", branches=branches)
    assert network.branches == len(network.backbone.branches) == 3


BOX = (0, 0, 8, 8)


def regions(**changes: object) -> dict[str, object]:
    return {"split": "none", "regions": [BOX] * 3, "region_size": (8, 8)} | changes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "none", "width": 0.75}, "width: applies only to splits at a layer, not to none"),
        ({"split": "last_block", "width": 0.5}, "applies only to splits at a layer, not to last_block"),
        ({"count": 1}, "greater than or equal to 2"),
        ({"split": "layer2", "width": 0.25}, "greater than or equal to 0.5"),
        (regions(region_size=None), "regions and region_size: give both, or neither"),
        ({"region_size": (8, 8)}, "regions and region_size: give both, or neither"),
        (regions(split="layer1"), "share no layers; set split to none, not layer1"),
        (regions(count=2), "regions: 3 for 2 branches; give one for each branch"),
        (regions(regions=[BOX, BOX, (4, 0, 4, 8)]), r"regions: \[4, 0, 4, 8\] is empty; give left, top, right, bottom"),
        (regions(regions=[BOX, BOX, (0, 8, 4, 2)]), r"regions: \[0, 8, 4, 2\] is empty"),
        (regions(regions=[BOX, BOX, (-1, 0, 4, 8)]), "greater than or equal to 0"),
        (regions(region_size=(0, 8)), "greater than or equal to 1"),
    ],
)
def test_branches_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        BranchesConfig(**values)
