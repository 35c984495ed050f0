"""Registries: every implementation is found, built from its settings, and documented."""

import typing
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from facelt.cli.evaluate import evaluate
from facelt.config import registry
from facelt.config.base import NamedSettings, ShotConvention
from facelt.config.registry import METHODS, SAMPLERS, Registry
from facelt.config.train import LrMultipliers
from facelt.errors import UserError
from facelt.evaluation.sweeps import SWEEPS
from facelt.metrics.classification import SHOT_CONVENTIONS
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.models.pretrained import NETWORK_PARTS
from facelt.store.store import EMBEDDING_KINDS
from tests.methods.minimal import BRANCHES, OPTIONS

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}


def option(command, name: str) -> set[str]:
    """The words a command's option takes, if it is not left out."""
    hint = typing.get_type_hints(command)[name]
    choices = hint if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)[0]
    return set(typing.get_args(choices))


def build(method: str):
    branches = BranchSpec(**BRANCHES[method]) if method in BRANCHES else None
    network = build_network(
        "resnet10", image_size=(32, 32), attention=True, embedding="linear_bn", dim=4, branches=branches
    )
    settings = METHODS.settings(method)(name=method, **OPTIONS.get(method, {}))
    return METHODS[method](settings, network, 5)


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_finds_its_implementations(name):
    assert len(REGISTRIES[name]) > 1


# Registries whose names need no line in a page on methods.
UNDOCUMENTED = ("LOSSES", "HEADS", "BACKBONES", "EMBEDDINGS")


@pytest.mark.parametrize("name", [name for name in REGISTRIES if name not in UNDOCUMENTED])
def test_every_registered_name_is_documented(name, root):
    if name == "DATA_KINDS":
        text = "".join(path.read_text() for path in (root / "configs").rglob("*.yaml"))
        missing = [kind for kind in REGISTRIES[name] if f"kind: {kind}" not in text]
    else:
        text = (root / "docs" / ("face_training.md" if name == "MARGINS" else "methods.md")).read_text()
        missing = [word for word in REGISTRIES[name] if f"`{word}`" not in text and f"`{word}_" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("name", "word"),
    [(name, word) for name in ("METHODS", "LOSSES", "MARGINS", "MIXINGS") for word in REGISTRIES[name]],
)
def test_settings_state_their_name_and_survive_a_dump(name, word):
    registry = REGISTRIES[name]
    required = {**OPTIONS, "seql": {"threshold": 0.1}}.get(word, {})
    field = TypeAdapter(Annotated[NamedSettings, registry.choice()])
    settings = field.validate_python({"name": word, **required})
    assert type(settings) is registry.settings(word)
    assert field.validate_python(field.dump_python(settings, mode="json")) == settings
    assert field.dump_python(settings)["name"] == word


def test_a_name_is_registered_once_and_a_wrong_one_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="the loss 'focal' is registered twice"):
        REGISTRIES["LOSSES"].register("focal")(object())
    with pytest.raises(UserError, match=r"unknown method .rider.; allowed: .*; did you mean .ride.\?"):
        METHODS.find("rider")
    field = TypeAdapter(Annotated[NamedSettings, METHODS.choice("ride", "bbn")])
    with pytest.raises(ValidationError, match="'classify' is not allowed; allowed: ride, bbn"):
        field.validate_python({"name": "classify"})
    with pytest.raises(ValidationError, match="not the settings of a method"):
        field.validate_python(METHODS.settings("classify")(name="ride"))
    with pytest.raises(ValidationError, match="expected a mapping with the key name"):
        field.validate_python("ride")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (SWEEPS, option(evaluate, "sweep")),
        (SHOT_CONVENTIONS, set(typing.get_args(ShotConvention))),
    ],
    ids=lambda value: ",".join(sorted(map(str, value))) if isinstance(value, set) else "",
)
def test_a_table_and_the_configuration_name_the_same(table, words):
    assert set(table) == words
    assert len(words) > 1


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_parts_streams_and_kinds_have_names_that_others_know(name):
    method = build(name)
    assert set(method.parameter_groups()) <= set(LrMultipliers.model_fields)
    assert {"network", "head"} <= set(method.parameter_groups())
    assert {stream.sampler for stream in method.sampler_specs()} <= set(SAMPLERS)
    assert set(method.kinds) <= set(EMBEDDING_KINDS)
    assert {child for child, _ in method.network.named_children()} == set(NETWORK_PARTS)
    grouped = [id(parameter) for group in method.parameter_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in method.parameters())
