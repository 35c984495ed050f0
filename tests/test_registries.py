"""Registries: every registered name builds, and the words that remain in two places are equal."""

import typing

import pytest
from pydantic import BaseModel

from facelt.cli.embed import embed
from facelt.cli.evaluate import evaluate
from facelt.config import registry
from facelt.config.audit import AuditConfig, EmbeddingKind, TrainingConfig
from facelt.config.registry import METHODS, SAMPLERS, Registry
from facelt.config.train import LrMultipliers, PartName
from facelt.data.cifar import CIFAR_FILES, PROFILES, CifarData
from facelt.evaluation.sweeps import SWEEPS
from facelt.heads.dynamic_meta import HEAD_VARIANTS
from facelt.heads.memory import UpdateRule
from facelt.methods.oltr import DynamicMetaSettings
from facelt.metrics.classification import SHOT_CONVENTIONS
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.models.pretrained import NETWORK_PARTS
from facelt.store.store import EMBEDDING_KINDS, STORE_DTYPES
from tests.methods.minimal import BRANCHES, OPTIONS

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}


def allowed(model: type[BaseModel], key: str) -> set[str]:
    """The words a configuration key takes."""
    return set(typing.get_args(model.model_fields[key].annotation))


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
    return METHODS[method](settings, network, 3)


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_finds_its_implementations_by_itself(name):
    assert len(REGISTRIES[name]) > 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (HEAD_VARIANTS, allowed(DynamicMetaSettings, "variant")),
        (typing.get_args(UpdateRule), allowed(DynamicMetaSettings, "centroid_update")),
        ((*NETWORK_PARTS, "head"), set(typing.get_args(PartName))),
        (EMBEDDING_KINDS, set(typing.get_args(EmbeddingKind))),
        (STORE_DTYPES, option(embed, "dtype")),
        (SHOT_CONVENTIONS, option(evaluate, "convention")),
        (SWEEPS, option(evaluate, "sweep")),
        (SHOT_CONVENTIONS, allowed(TrainingConfig, "convention")),
        (EMBEDDING_KINDS, allowed(AuditConfig, "kind")),
        (PROFILES, allowed(CifarData, "profile")),
        (CIFAR_FILES, allowed(CifarData, "classes")),
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
