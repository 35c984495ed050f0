"""Classifiers that start at class means: rows against a plain loop, refused settings, several ranks, a resumed run."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank, world_size
from facelt.errors import UserError
from facelt.methods.base import Method, TrainBatch
from facelt.methods.classify import Classify, ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.training.run import run
from tests.distributed.ranks import run_ranks
from tests.methods.interrupted import run_interrupted
from tests.methods.small import CLASSES, COUNTS, FIRST, run_dataset_passes, small_network, training_set

SETTINGS = {
    "cosine": ClassifySettings(name="classify", head="cosine", classifier_init="class_means"),
    "margin": ClassifySettings(name="classify", head="margin", classifier_init="class_means", sample_rate=0.5),
    "dynamic_meta": DynamicMetaSettings(
        name="dynamic_meta", centroid_update="tracking", classifier_init="class_means", direct_loss=0.5
    ),
}


def build(name: str) -> Method:
    config = SETTINGS[name]
    torch.manual_seed(5)
    return METHODS[config.name](config, small_network(), CLASSES, torch.tensor(COUNTS))


def rows(method: Method) -> torch.Tensor:
    head = method.head.classifier if hasattr(method.head, "classifier") else method.head
    return head.weight.detach().clone()


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_the_class_means_at_the_length_of_the_random_rows(name):
    method, data = build(name), training_set()
    before = rows(method)
    assert method.needs_dataset_pass
    run_dataset_passes(method, data)
    assert not method.needs_dataset_pass
    method.eval()
    with torch.no_grad():
        feature_ND = method.features(data.image_B3HW)
    after = rows(method)
    for label in range(CLASSES - 1):
        mean = feature_ND[data.label_B == label].mean(dim=0)
        torch.testing.assert_close(after[label], mean / mean.norm() * before[label].norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_class_without_an_image_keeps_its_random_row_and_is_counted(name):
    method = build(name)
    before = rows(method)
    run_dataset_passes(method, training_set())
    assert torch.equal(rows(method)[-1], before[-1])
    assert method.diagnostics()["random_rows"] == 1
    full = build(name)
    data = training_set((2,) * CLASSES)
    run_dataset_passes(full, data)
    assert "random_rows" not in full.diagnostics()


def rows_on_ranks(name: str) -> list[list[float]]:
    method, data = build(name), training_set()
    own = slice(rank(), None, world_size())
    run_dataset_passes(method, TrainBatch(data.image_B3HW[own], data.label_B[own]), batch=100)
    return rows(method).tolist()


@pytest.mark.parametrize("name", ["cosine", "dynamic_meta"])
def test_two_ranks_share_the_rows_of_one_process(name, tmp_path):
    parts = run_ranks(rows_on_ranks, 2, tmp_path, name)
    torch.testing.assert_close(torch.tensor([*parts[0], *parts[1]]), torch.tensor(rows_on_ranks(name)))


def test_the_direct_loss_is_cross_entropy_of_the_direct_feature_on_the_same_rows():
    method, data = build("dynamic_meta"), training_set()
    run_dataset_passes(method, data)
    method.eval()
    output = method.step([data], FIRST)
    feature = torch.nn.functional.normalize(method.features(data.image_B3HW), dim=1)
    weight = torch.nn.functional.normalize(method.head.classifier.weight, dim=1)
    expected = torch.nn.functional.cross_entropy(16 * feature @ weight.T, data.label_B)
    torch.testing.assert_close(output.parts["direct_loss"], expected.detach())
    parts = output.parts
    total = parts["cross_entropy"] + 0.01 * parts["centroids_loss"] + 0.5 * expected
    torch.testing.assert_close(output.loss, total)


def test_settings_that_exclude_each_other():
    with pytest.raises(ValidationError, match="classifier_init: the head linear has no class means"):
        ClassifySettings(name="classify", classifier_init="class_means")
    with pytest.raises(ValidationError, match="classifier_init: keep_head loads all rows"):
        ClassifySettings(name="classify", head="cosine", keep_head=True, classifier_init="class_means")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "dynamic_meta", "classifier_init": "class_means"},
        {"name": "classify", "head": "cosine", "classifier_init": "class_means"},
    ],
)
def test_class_means_need_a_trained_network(method, recipe, tmp_path):
    values = recipe(tmp_path / "run", stages=[{"name": "only", "method": method, "epochs": 1}])
    with pytest.raises(ValidationError, match="'only' takes class means of a trained network and has none; set init"):
        TrainConfig.model_validate(values)
    values["model"]["pretrained"] = str(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        run(TrainConfig.model_validate(values))


def test_a_resumed_run_equals_an_uninterrupted_one(recipe, finished_run, tmp_path, monkeypatch):
    method = {"name": "classify", "head": "margin", "classifier_init": "class_means"}
    stage = {"name": "only", "method": method, "epochs": 2, "init_from": str(finished_run / "plain")}

    def train(name: str, resume: bool = False) -> dict[str, torch.Tensor]:
        values = recipe(tmp_path / name, stages=[stage], checkpoint_every=2)
        run(TrainConfig.model_validate(values), resume)
        return load_file(tmp_path / name / "only/model.safetensors")

    straight = train("straight")
    log = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    # tiny_faces has an identity without images.
    assert [line["random_rows"] for line in log if "random_rows" in line] == [1, 1]
    run_interrupted(monkeypatch, Classify, lambda: train("stopped"))
    monkeypatch.setattr(Classify, "observe", None)
    resumed = train("stopped", resume=True)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
