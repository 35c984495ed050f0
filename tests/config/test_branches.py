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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "none", "width": 0.75}, "width: applies only to splits at a layer, not to none"),
        ({"split": "last_block", "width": 0.5}, "applies only to splits at a layer, not to last_block"),
        ({"count": 1}, "greater than or equal to 2"),
        ({"split": "layer2", "width": 0.25}, "greater than or equal to 0.5"),
    ],
)
def test_branches_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        BranchesConfig(**values)
