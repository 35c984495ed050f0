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
        ("base: config.yaml\n", "leads back to"),
        ("base: absent.yaml\n", "cannot read the configuration"),
        ("base: [1]\n", "expected the name of one YAML file"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, expected):
    assert expected in refusal(write(tmp_path, text))


def test_a_mistake_in_a_base_names_the_file_that_has_it(tmp_path):
    base = write(tmp_path, "optim: {lrr: 0.5, momentum: 2}\nstages: [{epochs: 0}, {}]\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nseed: x\noptim: {momentum: none, beta: 1}\n")
    sources = dict(line.split(": ")[1::-1] for line in refusal(path).splitlines())
    assert sources == {
        "optim.lrr": str(base),
        "optim.beta": str(path),
        "optim.momentum": str(path),
        "seed": str(path),
        "stages.0.epochs": str(base),
    }
    # A list replaces that of the base, whose own entries no longer count.
    path = write(tmp_path, "base: base.yaml\noptim: {}\nstages: [{method: {}}]\n")
    assert f"{path}: stages.0.method.name: this key is required" in refusal(path)
    # A value of the command line is no mistake of the base.
    assert f"{path}: optim.momentum: 'x'" in refusal(path, "optim.momentum=x")


def test_a_base_that_cannot_be_opened_and_a_cycle_are_one_line(tmp_path):
    path = write(tmp_path, "base: absent.yaml\n")
    assert refusal(path) == (
        f"{path}: base: {tmp_path / 'absent.yaml'}: cannot read the configuration (No such file or directory)"
    )
    write(tmp_path, "base: config.yaml\n", "middle.yaml")
    path = write(tmp_path, "base: middle.yaml\n")
    assert refusal(path) == (
        f"{tmp_path / 'middle.yaml'}: base: config.yaml leads back to {path}; remove one of the two"
    )
    for level in range(12):
        write(tmp_path, f"base: level{level + 1}.yaml\n", f"level{level}.yaml")
    assert "more than 8 levels of bases" in refusal(tmp_path / "level0.yaml")


ANIMALS = Registry("animal", __name__, key="kind")


@ANIMALS.register("dog")
class Dog(StrictModel):
    kind: str
    legs: int = 4
    barks: bool = True


@ANIMALS.register("fish")
class Fish(StrictModel):
    kind: str
    legs: int = 0
    depth: float = 1


class Pond(StrictModel):
    animal: Annotated[StrictModel, ANIMALS.choice()]


def test_another_kind_inherits_the_keys_that_it_has(tmp_path):
    write(tmp_path, "animal: {kind: dog, legs: 3, barks: false}\n", "dog.yaml")
    write(tmp_path, "base: dog.yaml\nanimal: {kind: fish, depth: 2}\n", "fish.yaml")
    assert load_config(tmp_path / "fish.yaml", Pond).animal == Fish(kind="fish", legs=3, depth=2)
    # Back again: the keys of the dog are gone, those of the fish too.
    path = write(tmp_path, "base: fish.yaml\nanimal: {kind: dog}\n")
    assert load_config(path, Pond).animal == Dog(kind="dog", legs=3)
    # An override of the name keeps other overrides, in any order.
    fish = load_config(tmp_path / "dog.yaml", Pond, ["animal.depth=5", "animal.kind=fish"]).animal
    assert fish == Fish(kind="fish", legs=3, depth=5)
    # A key that the kind does not have remains a mistake in the file that sets the kind, and without a new kind.
    path = write(tmp_path, "base: dog.yaml\nanimal: {kind: fish, barks: true}\n")
    with pytest.raises(UserError, match=r"config\.yaml: animal\.barks: unknown key; allowed: depth, kind, legs"):
        load_config(path, Pond)
    path = write(tmp_path, "base: dog.yaml\nanimal: {kind: cat}\n")
    with pytest.raises(UserError, match=r"config\.yaml: animal\.kind: 'cat' is not allowed"):
        load_config(path, Pond)


@pytest.mark.parametrize("value", ["true", "1.0", "'1'", "2024-01-31", "1_000", "[1]", "~", ".nan"])
def test_nothing_is_converted_to_an_integer(tmp_path, value):
    assert "config.yaml: seed: " in refusal(write(tmp_path, f"seed: {value}\n"))


@pytest.mark.parametrize("value", ["true", "'0.5'", ".inf", ".nan", "0.5.1"])
def test_nothing_but_an_integer_is_converted_to_a_number(tmp_path, value):
    assert load_config(write(tmp_path, "optim: {lr: 1}\n"), Config).optim.lr == 1.0
    assert "config.yaml: optim.lr: " in refusal(write(tmp_path, f"optim: {{lr: {value}}}\n"))


def test_only_true_and_false_are_booleans(tmp_path):
    write(tmp_path, "animal: {kind: dog}\n", "dog.yaml")
    for value in ("1", "yes", "'true'"):
        with pytest.raises(UserError, match=r"animal\.barks: .*: input should be true or false"):
            load_config(tmp_path / "dog.yaml", Pond, [f"animal.barks={value}"])
    assert load_config(tmp_path / "dog.yaml", Pond, ["animal.barks=False"]).animal.barks is False


def test_many_and_long_mistakes_stay_short(tmp_path):
    message = refusal(write(tmp_path, "".join(f"k{i}: 1\n" for i in range(500)) + f"seed: {'x' * 10_000}\n"))
    assert message.count("\n") == 20
    assert message.endswith("config.yaml: 481 more mistakes")
    assert len(refusal(write(tmp_path, f"seed: {'x' * 10_000}\n"))) < 500


@pytest.mark.parametrize("override", ["seed", "=1", "stages.4.epochs=1", "seed.deep.er=1", "optim..lr=1", "seed=["])
def test_malformed_overrides_are_refused(tmp_path, override):
    assert f"--set {override}" in refusal(write(tmp_path, "seed: 1\nstages: [{epochs: 1}]\n"), override)


def test_keys_of_mappings_may_be_text_as_in_json(tmp_path):
    class Rates(StrictModel):
        accuracy: dict[float, float]

    for text in ("accuracy: {100: 38.3, '0.5': 2}", 'accuracy: {"100": 38.3, "0.5": 2}'):
        assert load_config(write(tmp_path, text), Rates).accuracy == {100.0: 38.3, 0.5: 2.0}
