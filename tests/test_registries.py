"""Every table of names agrees with what the configuration allows."""

import typing

import pytest
from pydantic import BaseModel

from eval_megaface.config import Kind
from facelt.cli.embed import embed
from facelt.cli.evaluate import evaluate
from facelt.config.audit import AuditConfig, TrainingConfig
from facelt.config.data import CifarData
from facelt.config.losses import LossConfig, MetricLossConfig, MixConfig, WeightsConfig
from facelt.config.methods import ClassifyConfig, DynamicMetaConfig, MethodConfig
from facelt.config.train import ModelConfig, Part, Shares, StageConfig
from facelt.data.cifar import _PROFILES, CIFAR_FILES
from facelt.data.samplers import SAMPLERS
from facelt.evaluation.sweeps import SWEEPS
from facelt.heads.classifiers import HEADS
from facelt.heads.dynamic_meta import CONVENTIONS
from facelt.heads.memory import UpdateRule
from facelt.losses.classification import LOSSES, WEIGHTS
from facelt.losses.metric import METRIC_LOSSES
from facelt.methods import METHODS
from facelt.methods.classify import MIXINGS
from facelt.methods.oltr import _CONVENTIONS
from facelt.metrics.classification import SHOT_CONVENTIONS
from facelt.models.backbones import BACKBONES
from facelt.models.branched import Branches
from facelt.models.layers import EMBEDDINGS
from facelt.models.network import build_network
from facelt.models.pretrained import PARTS
from facelt.openset.rejection import OPENSET
from facelt.store.store import DTYPES, KINDS
from tests.methods.minimal import BRANCHES, OPTIONS


def allowed(model: type[BaseModel], key: str) -> set[str]:
    """The words a configuration key takes."""
    return set(typing.get_args(model.model_fields[key].annotation))


def tags(union: object, key: str) -> set[str]:
    """The words that choose a member of a union."""
    members = typing.get_args(typing.get_args(union)[0])
    return {word for member in members for word in allowed(member, key)}


def option(command, name: str) -> set[str]:
    """The words a command's option takes, if it is not left out."""
    hint = typing.get_type_hints(command)[name]
    choices = hint if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)[0]
    return set(typing.get_args(choices))


def build(method: str):
    branches = Branches(**BRANCHES[method]) if method in BRANCHES else None
    network = build_network(
        "resnet10", image_size=(32, 32), attention=True, embedding="linear_bn", dim=4, branches=branches
    )
    (config,) = (m for m in typing.get_args(typing.get_args(MethodConfig)[0]) if allowed(m, "name") == {method})
    return METHODS[method](config(name=method, **OPTIONS.get(method, {})), network, 3)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (METHODS, tags(MethodConfig, "name")),
        (HEADS, allowed(ClassifyConfig, "head")),
        (LOSSES, tags(LossConfig, "name")),
        (WEIGHTS, tags(WeightsConfig, "name")),
        (METRIC_LOSSES, tags(MetricLossConfig, "name")),
        (MIXINGS, tags(MixConfig, "name")),
        (SAMPLERS, allowed(ClassifyConfig, "sampler")),
        (SAMPLERS, allowed(DynamicMetaConfig, "sampler")),
        (CONVENTIONS, allowed(DynamicMetaConfig, "convention")),
        (_CONVENTIONS, allowed(DynamicMetaConfig, "convention")),
        (typing.get_args(UpdateRule), allowed(DynamicMetaConfig, "centroid_update")),
        (BACKBONES, allowed(ModelConfig, "backbone")),
        (EMBEDDINGS, allowed(StageConfig, "embedding")),
        ((*PARTS, "head"), set(typing.get_args(Part))),
        (KINDS, set(typing.get_args(Kind))),
        (DTYPES, option(embed, "dtype")),
        (SHOT_CONVENTIONS, option(evaluate, "convention")),
        (OPENSET, option(evaluate, "open_")),
        (SWEEPS, option(evaluate, "sweep")),
        (SHOT_CONVENTIONS, allowed(TrainingConfig, "convention")),
        (KINDS, allowed(AuditConfig, "kind")),
        (_PROFILES, allowed(CifarData, "profile")),
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
    assert set(method.parameter_groups()) <= set(Shares.model_fields)
    assert {"network", "head"} <= set(method.parameter_groups())
    assert {stream.sampler for stream in method.streams()} <= set(SAMPLERS)
    assert set(method.kinds) <= set(KINDS)
    assert {child for child, _ in method.network.named_children()} == set(PARTS)
    grouped = [id(parameter) for group in method.parameter_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in method.parameters())
