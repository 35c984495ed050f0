"""Loading: merging, overrides, and messages that name the key."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from facelt.config.base import NamedSettings, StrictModel
from facelt.config.loading import load_config
from facelt.config.registry import Registry
from facelt.errors import UserError


class Optim(StrictModel):
    lr: float = Field(0.1, gt=0)
    momentum: float = 0.9


PICKS = Registry("pick", __name__)


@PICKS.register("plain")
class Plain(NamedSettings):
    head: Literal["linear", "cosine"] = "linear"


@PICKS.register("meta")
class Meta(NamedSettings):
    scale: float = 16.0


class Stage(StrictModel):
    epochs: int = Field(1, ge=1)
    method: Annotated[NamedSettings, PICKS.choice()] = Plain(name="plain")


class Config(StrictModel):
    seed: int = 0
    optim: Optim = Optim()
    stages: tuple[Stage, ...] = ()


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, Config, overrides)
    return str(caught.value)


def test_a_base_is_merged_key_by_key_and_lists_are_replaced(tmp_path):
    write(tmp_path, "seed: 3\noptim: {lr: 0.5, momentum: 0.8}\nstages: [{epochs: 2}, {epochs: 3}]\n", "base.yaml")
    config = load_config(write(tmp_path, "base: base.yaml\noptim: {lr: 0.2}\nstages: [{epochs: 9}]\n"), Config)
    assert (config.seed, config.optim.lr, config.optim.momentum) == (3, 0.2, 0.8)
    assert [stage.epochs for stage in config.stages] == [9]


def test_overrides_reach_into_mappings_and_lists(tmp_path):
    path = write(tmp_path, "stages: [{epochs: 2}, {epochs: 3}]\n")
    config = load_config(path, Config, ["optim.lr=1e-3", "stages.1.epochs=7", "seed=5"])
    assert (config.optim.lr, config.stages[0].epochs, config.stages[1].epochs, config.seed) == (1e-3, 2, 7, 5)


def test_an_unknown_key_is_named_with_what_is_allowed_and_the_nearest(tmp_path):
    message = refusal(write(tmp_path, "optim: {lrr: 0.5}\n"))
    assert "optim.lrr: unknown key; allowed: lr, momentum; did you mean 'lr'?" in message
    assert "config.yaml" in message
    assert "did you mean 'optim'" in refusal(write(tmp_path, "optin: {lr: 0.5}\n"))
    assert "stages.0.epoch: unknown key; allowed: epochs, method" in refusal(write(tmp_path, "stages: [{epoch: 1}]\n"))


def test_a_key_below_a_choice_is_explained_from_the_settings_chosen(tmp_path):
    message = refusal(write(tmp_path, "stages: [{method: {name: plain, haed: cosine}}]\n"))
    assert "did you mean 'head'?" in message
    message = refusal(write(tmp_path, "stages: [{method: {name: plane}}]\n"))
    assert "stages.0.method.name: 'plane' is not allowed; allowed: plain, meta; did you mean 'plain'?" in message


def test_unknown_keys_at_several_levels_are_all_named():
    from facelt.config.loading import explain
    from facelt.config.train import TrainConfig

    stage = {"name": "plain", "method": {"name": "clasify"}, "epochs": 1, "start": "x", "schedule": {"every": 3}}
    values = {"out": "x", "data": {"kind": "record", "train": "t", "resident": True}, "stages": [stage], "sed": 1}
    with pytest.raises(ValidationError) as error:
        TrainConfig.model_validate(values)
    message = explain(error.value, source="recipe.yaml")
    keys = ("sed", "stages.0.start", "stages.0.schedule.every", "stages.0.method.name", "data.resident")
    for key in keys:
        assert sum(line.startswith(f"recipe.yaml: {key}: ") for line in message.splitlines()) == 1
    assert "did you mean 'seed'" in message


def test_values_out_of_range_name_the_key(tmp_path):
    path = write(tmp_path, "")
    assert "optim.lr: -1: input should be greater than 0" in refusal(path, "optim.lr=-1")
    message = refusal(path, "stages=[{method: {name: plain, head: linaer}}]")
    assert "'linaer' is not allowed; allowed: linear, cosine; did you mean 'linear'?" in message
    assert "seed: 'many': " in refusal(path, "seed=many")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "occurs twice"),
        ("seed: [", "not valid YAML"),
        ("- 1\n", "expected a mapping"),
        ("base: config.yaml\n", "does a file name itself"),
        ("base: absent.yaml\n", "cannot read the configuration"),
        ("base: [1]\n", "expected the name of one YAML file"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, expected):
    assert expected in refusal(write(tmp_path, text))


@pytest.mark.parametrize("override", ["seed", "=1", "stages.4.epochs=1", "seed.deep.er=1", "optim..lr=1", "seed=["])
def test_malformed_overrides_are_refused(tmp_path, override):
    assert f"--set {override}" in refusal(write(tmp_path, "seed: 1\nstages: [{epochs: 1}]\n"), override)
