"""Audit configurations: the shipped ones load, contradictory ones are refused."""

import pytest

from facelt.config.audit import AuditConfig
from facelt.config.loading import load_config
from facelt.errors import UserError


def test_every_audit_loads(root):
    paths = sorted((root / "configs").glob("audit_*.yaml"))
    assert [path.stem for path in paths] == ["audit_megaface", "audit_scores"]
    for path in paths:
        config = load_config(path, AuditConfig)
        assert config.by[0] == ("gender",)
        assert config.threshold.fmr == 0.001


def test_default_rates_apply_without_a_threshold():
    config = load_config(None, AuditConfig, ["out=x", "scores=y", "by=[[a]]", "threshold.store=z"])
    assert (config.threshold.wanted.fmr, config.threshold.wanted.fpir) == (1e-3, 1e-2)
    named = config.model_copy(update={"threshold": config.threshold.model_copy(update={"fpir": 0.1})})
    assert (named.threshold.wanted.fmr, named.threshold.wanted.fpir) == (None, 0.1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (["gallery.path=z"], "gallery requires embeddings: set embeddings.path"),
        (["shots.train=z"], "shots.train requires embeddings: set embeddings.path"),
        (["attributes.actors=z"], "attributes: actors and actresses go together: give both files or neither"),
        (["by=[]"], "by: "),
        (["by=[[]]"], "by.0: "),
        (["min_identities=1"], "min_identities: "),
        (["bins={a: [2, 1]}"], "bins.a: the edges must ascend"),
        (["embeddings.path=z"], "embeddings and scores exclude each other"),
        (["threshold.fmr=1.5"], "threshold.fmr: "),
    ],
)
def test_contradictions_are_refused_by_key(changes, what):
    with pytest.raises(UserError) as error:
        load_config(None, AuditConfig, ["out=x", "scores=y", "by=[[a]]", *changes])
    assert str(error.value).startswith("command line: ")
    assert what in str(error.value)
