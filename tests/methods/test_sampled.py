"""Partial FC as a recipe: refused settings, and a run that is interrupted, resumed and evaluated."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.train import TrainConfig
from facelt.evaluation.evaluate import closed_set_accuracy
from facelt.inference.model import load_model
from facelt.methods.classify import Classify, ClassifySettings
from facelt.training.run import run
from tests.methods.interrupted import run_interrupted


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(rate):
    with pytest.raises(ValidationError, match="sample_rate"):
        ClassifySettings(name="classify", head="cosine", sample_rate=rate)


def test_the_linear_head_has_no_sampling():
    with pytest.raises(ValidationError, match="sample_rate: the head linear trains all identities"):
        ClassifySettings(name="classify", sample_rate=0.5)
    assert ClassifySettings(name="classify", sample_rate=1.0).sample_rate == 1


@pytest.mark.parametrize(
    "head",
    [{"head": "cosine"}, {"head": "margin"}, {"head": "margin", "margin": {"name": "adaface"}}],
    ids=["cosine", "arcface", "adaface"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(head, recipe, tmp_path, monkeypatch):
    method = {"name": "classify", "sample_rate": 0.5, **head}

    def train(name: str, resume: bool = False) -> dict[str, torch.Tensor]:
        stages = [{"name": "only", "method": method, "epochs": 2}]
        run(TrainConfig.model_validate(recipe(tmp_path / name, stages=stages, checkpoint_every=2)), resume)
        return load_file(tmp_path / name / "only/model.safetensors")

    straight = train("straight")
    model = load_model(tmp_path / "straight", torch.device("cpu"))
    assert 0 <= closed_set_accuracy(model, "validation", "paper", batch=4, workers=0).overall <= 1
    run_interrupted(monkeypatch, Classify, lambda: train("stopped"))
    resumed = train("stopped", resume=True)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    # The moving average of AdaFace has left its start, and was not restarted.
    assert ("margin" in head) == ("head.margin.norm_mean" in straight)
    assert straight.get("head.margin.norm_mean", 0) != 20
