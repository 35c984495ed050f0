"""Variants of the second stage: every one is a valid recipe that changes what its name says."""

from pathlib import Path

import pytest

from benchmarks.second_stages import PLAIN_SCRATCH, REFERENCE, SECOND_STAGES, variant_recipe
from facelt.config.loading import read_layers
from facelt.config.train import TrainConfig

RECIPES = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("recipe", ["faces_small.yaml", "demo.yaml"])
@pytest.mark.parametrize("name", ["plain", PLAIN_SCRATCH, *SECOND_STAGES])
def test_every_variant_is_a_valid_recipe(recipe, name, tmp_path):
    values = read_layers(RECIPES / recipe).values()
    config = TrainConfig.model_validate(variant_recipe(tmp_path, name, values))
    plain, plain_long, oltr = TrainConfig.model_validate(values).stages
    (stage,) = config.stages
    assert config.out == tmp_path / name
    if name in SECOND_STAGES:
        assert stage.init_from == str(tmp_path / "plain/model")
        assert (stage.epochs, stage.schedule) == (oltr.epochs, oltr.schedule)
    else:
        assert stage.epochs == plain.epochs + (oltr.epochs if name == PLAIN_SCRATCH else 0)
    if name == "oltr":
        assert (stage.method, stage.attention) == (oltr.method, oltr.attention)
    elif name == REFERENCE:
        assert (stage.method, stage.attention) == (plain_long.method, plain_long.attention)
    elif name in SECOND_STAGES:
        assert stage.method != oltr.method or stage.lr_mult != oltr.lr_mult
