"""Classify with every loss, class weights and feature losses: loss of a step, and refused settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from facelt.config.registry import CLASS_WEIGHTS, LOSSES, METHODS, METRIC_LOSSES
from facelt.config.train import TrainConfig
from facelt.evaluation.evaluate import closed_set_accuracy
from facelt.inference.model import load_model
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.models.network import build_network
from facelt.training.run import run

CLASSES, DIM = 6, 16
COUNTS = torch.tensor([30, 14, 9, 4, 1, 0])
FIRST, LATE = (StepContext(epoch=epoch, epochs=10, step=0, steps=2) for epoch in (0, 8))
OPTIONS = {"seql": {"threshold": 0.1}, "ldam": {"scale": 20.0}, "focal": {"gamma": 2.0}}
HEADS = {"ldam": {"head": "cosine", "scale": 20.0}}


@pytest.fixture
def classify():
    """classify(counts_C, **config) -> the method, with frozen batch-norm statistics."""

    def build(counts_C: torch.Tensor | None = COUNTS, **config):
        torch.manual_seed(0)
        network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="linear_bn", dim=DIM)
        return METHODS["classify"](ClassifySettings(name="classify", **config), network, CLASSES, counts_C).eval()

    return build


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(8, 3, 32, 32, generator=random), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]))


def logits_of(method, inputs: TrainBatch) -> torch.Tensor:
    feature_BD = method.network(inputs.image_B3HW)
    if hasattr(method.head, "scale"):
        return method.head.scale * F.normalize(feature_BD) @ F.normalize(method.head.weight).T
    return F.linear(feature_BD, method.head.weight, method.head.bias)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_step_is_the_plain_one_on_the_heads_logits(classify, inputs, name):
    options = OPTIONS.get(name, {})
    method = classify(loss={"name": name, **options}, **HEADS.get(name, {}))
    output = method.step([inputs], FIRST)
    draw = FIRST.generator("cpu", same_on_all_ranks=True)
    expected = LOSSES[name](COUNTS, **options)(logits_of(method, inputs), inputs.label_B, None, draw)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in method.head.parameters())


@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_weights_begin_at_their_share_of_the_stage(classify, inputs, name):
    method = classify(weights={"name": name, "start": 0.8})
    logits_BC = logits_of(method, inputs)
    plain = F.cross_entropy(logits_BC, inputs.label_B)
    weighted = F.cross_entropy(logits_BC, inputs.label_B, weight=CLASS_WEIGHTS[name](COUNTS))
    assert method.step([inputs], FIRST).loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert method.step([inputs], LATE).loss.item() == pytest.approx(weighted.item(), rel=1e-5)
    before = StepContext(epoch=7, epochs=10, step=1, steps=2)
    assert method.step([inputs], before).loss.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_a_metric_loss_is_added_by_its_weight(classify, inputs, name):
    method = classify(metric_loss={"name": name, "weight": 0.3, "margin": 2.0})
    output = method.step([inputs], FIRST)
    metric = METRIC_LOSSES[name](method.network(inputs.image_B3HW), inputs.label_B, margin=2.0)
    plain = F.cross_entropy(logits_of(method, inputs), inputs.label_B)
    assert metric.item() > 0
    assert output.loss.item() == pytest.approx((plain + 0.3 * metric).item(), rel=1e-5)
    assert output.parts["metric_loss"].item() == pytest.approx(metric.item(), rel=1e-5)
    assert output.parts["classification_loss"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_draws_depend_on_the_step_and_are_equal_on_every_rank(monkeypatch):
    def draw(context, rank, same_on_all_ranks):
        monkeypatch.setattr("facelt.methods.base.rank", lambda: rank)
        return torch.rand(4, generator=context.generator("cpu", same_on_all_ranks)).tolist()

    assert draw(FIRST, 0, True) == draw(FIRST, 3, True)
    assert draw(FIRST, 0, True) != draw(LATE, 0, True)
    assert draw(FIRST, 0, False) != draw(FIRST, 3, False)


def test_sigmoids_start_at_one_of_all_classes(classify, inputs):
    method = classify(loss={"name": "sigmoid_focal"})
    assert method.head.bias.sigmoid().tolist() == pytest.approx([1 / CLASSES] * CLASSES)
    assert not classify(loss={"name": "focal"}).head.bias.any()
    assert math.isfinite(method.step([inputs], FIRST).loss.item())


def test_a_trained_model_needs_no_counts(classify, inputs):
    config = {"loss": {"name": "balanced_softmax"}, "weights": {"name": "class_balanced"}}
    trained, used = classify(**config), classify(None, **config)
    used.load_state_dict(trained.state_dict())
    assert torch.equal(used.logits(inputs.image_B3HW).local_BC, trained.logits(inputs.image_B3HW).local_BC)
    with pytest.raises(RuntimeError, match="training needs the class counts"):
        used.step([inputs], FIRST)
    assert classify(None).step([inputs], FIRST).loss.isfinite()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": {"name": "focal"}, "head": "margin"}, "loss: the head margin supports only plain"),
        ({"weights": {"name": "cost_sensitive"}, "head": "margin"}, "weights: the head margin supports only plain"),
        ({"loss": {"name": "seql", "threshold": 0.1}, "head": "cosine", "sample_rate": 0.5}, "remove sample_rate"),
        ({"loss": {"name": "ldam"}}, "set head: cosine and scale: 30"),
        ({"loss": {"name": "ldam"}, "head": "cosine"}, "set head: cosine and scale: 30"),
        ({"loss": {"name": "ldam", "scale": 16}, "head": "cosine", "scale": 30}, "and scale: 16"),
        ({"loss": {"name": "sigmoid_focal"}, "head": "cosine"}, "the bias of the head linear; cosine has none"),
        ({"loss": {"name": "hinge"}}, "loss"),
        ({"loss": {"name": "softmax", "gamma": 1}}, "gamma"),
        ({"loss": {"name": "seql"}}, "threshold"),
        ({"weights": {"name": "class_balanced", "beta": 1.0}}, "beta"),
        ({"weights": {"name": "class_balanced", "start": 1.0}}, "start"),
        ({"metric_loss": {"name": "range", "weight": 0}}, "weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(config, message):
    with pytest.raises(ValidationError, match=message):
        ClassifySettings(name="classify", **config)


def test_a_recipe_with_late_weights_trains_and_is_evaluated(recipe, tmp_path):
    """The tiny faces have an identity without a picture, so one class weight and one margin are unused."""
    method = {
        "name": "classify",
        "sampler": "class_aware",
        **{"head": "cosine", "scale": 30, "loss": {"name": "ldam"}},
        "weights": {"name": "class_balanced", "start": 0.5},
        "metric_loss": {"name": "range", "weight": 0.01},
    }
    values = recipe(tmp_path / "run", stages=[{"name": "only", "method": method, "epochs": 2}])
    model = load_model(run(TrainConfig.model_validate(values)), torch.device("cpu"))
    assert 0 <= closed_set_accuracy(model, "validation", "paper", batch=4, workers=0).overall <= 1
