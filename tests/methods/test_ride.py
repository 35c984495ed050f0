"""RIDE: its step against the loss of the released code, and distillation."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from facelt.config.registry import METHODS
from facelt.config.train import StageConfig
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.multi_expert import RideSettings
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network

CLASSES, DIM, EXPERTS, BATCH = 6, 16, 3, 8
COUNTS = torch.tensor([400, 90, 40, 10, 4, 1])
EARLY, LATE = StepContext(159, 200, 0, 10), StepContext(160, 200, 0, 10)


def build(experts=EXPERTS, **config):
    torch.manual_seed(experts)
    network = build_network(
        "resnet10",
        image_size=(32, 32),
        attention=False,
        embedding="linear_bn",
        dim=DIM,
        branches=BranchSpec(experts, "layer3"),
    )
    # In evaluation mode, so that the same images have the same logits again.
    return METHODS["ride"](RideSettings(name="ride", **config), network, CLASSES, COUNTS).eval()


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(BATCH, 3, 32, 32, generator=random), torch.tensor([0, 0, 1, 1, 2, 3, 4, 5]))


def logits_of(method, inputs):
    """Each expert's logits by hand."""
    feature_BKD = method.network(inputs.image_B3HW)
    return [
        30 * F.normalize(feature_BKD[:, k]) @ F.normalize(method.heads[k].weight).T for k in range(len(method.heads))
    ]


def margin_loss(logits_BC, label_B, late):
    """LDAM, re-weighted by effective numbers once it is late."""
    margin_C = COUNTS.double() ** -0.25
    margin_C = 0.5 * margin_C / margin_C.max()
    taken_BC = F.one_hot(label_B, CLASSES) * 30 * margin_C
    weight_C = 1e-4 / (1 - 0.9999 ** COUNTS.double())
    weight_C = CLASSES * weight_C / weight_C.sum()
    return F.cross_entropy(logits_BC.double() - taken_BC, label_B, weight=weight_C if late else None)


def ride_loss(experts, label_B, diversity, late):
    temperature_C = CLASSES * COUNTS.double() / COUNTS.sum() * 0.05 + 0.95
    temperature_C = temperature_C / temperature_C.max() if late else torch.ones(CLASSES)
    total, mean_BC = 0.0, sum(experts) / len(experts)
    for logits_BC in experts:
        answer_BC = F.log_softmax(logits_BC / temperature_C, dim=1)
        aim_BC = F.softmax(mean_BC / temperature_C, dim=1)
        divergence = F.kl_div(answer_BC, aim_BC, reduction="batchmean")
        total = total + margin_loss(logits_BC, label_B, late) + diversity * temperature_C.mean() ** 2 * divergence
    return total


@pytest.mark.parametrize(("progress", "late"), [(EARLY, False), (LATE, True)])
def test_a_step_is_the_loss_of_plain_logits(inputs, progress, late):
    method = build(diversity=-0.3)
    with torch.no_grad():
        expected = ride_loss(logits_of(method, inputs), inputs.label_B, -0.3, late)
        loss = method.step([inputs], progress).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_collaborative_asks_the_mean_alone(inputs):
    method = build(collaborative=True)
    with torch.no_grad():
        mean_BC = sum(logits_of(method, inputs)) / EXPERTS
        loss = method.step([inputs], LATE).loss
    assert loss.item() == pytest.approx(EXPERTS * margin_loss(mean_BC, inputs.label_B, True).item(), rel=1e-4)


def test_without_weights_and_with_plain_cross_entropy(inputs):
    method = build(loss={"name": "softmax"}, weights=None, diversity=0)
    with torch.no_grad():
        expected = sum(F.cross_entropy(logits_BC, inputs.label_B) for logits_BC in logits_of(method, inputs))
        loss = method.step([inputs], LATE).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_mean_learns_from_the_teachers_mean_and_all_counts_once_an_expert(inputs):
    method, teacher = build(distillation={"temperature": 1.5, "weight": 0.7}), build(experts=4)
    method.set_teachers([teacher])
    student = sum(logits_of(method, inputs)) / EXPERTS / 1.5
    taught = sum(logits_of(teacher, inputs)) / 4 / 1.5
    learnt = 1.5**2 * F.kl_div(student.log_softmax(1), taught.softmax(1), reduction="batchmean")
    output = method.step([inputs], EARLY)
    expected = EXPERTS * (ride_loss(logits_of(method, inputs), inputs.label_B, -0.45, False) + 0.7 * learnt)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert output.parts["distillation"].item() == pytest.approx(learnt.item(), rel=1e-4)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in method.state_dict())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_teacher_normalises_by_the_statistics_of_its_mode(inputs, mode):
    method, teacher = build(distillation={"teacher_mode": mode}), build(experts=4)
    with torch.no_grad():
        taught = sum(logits_of(teacher.train(mode == "train"), inputs)) / 4 / 1.5
        student = sum(logits_of(method, inputs)) / EXPERTS / 1.5
    expected = 1.5**2 * F.kl_div(student.log_softmax(1), taught.softmax(1), reduction="batchmean")
    method.set_teachers([teacher.eval()])
    for _ in range(2):  # the running statistics, which a train step changes, matter in neither mode
        parts = method.step([inputs], EARLY).parts
        assert parts["distillation"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_diversity_parts_the_experts_and_the_mean_gets_no_gradient_of_it(inputs):
    """One step down the gradient of the diversity alone, at the logits, moves each expert away from the mean."""
    method = build(loss={"name": "softmax"}, weights=None, diversity=-1.0)
    plain = build(loss={"name": "softmax"}, weights=None, diversity=0.0)
    gradients = []
    for item in (method, plain):
        item.step([inputs], EARLY).loss.backward()
        gradients.append([head.weight.grad for head in item.heads])
    experts = [logits_of(method, inputs)]
    with torch.no_grad():
        for head, mixed, alone in zip(method.heads, *gradients, strict=True):
            head.weight -= 1e-3 * (mixed - alone)
        experts.append(logits_of(method, inputs))
        mean_BC = sum(experts[0]) / EXPERTS
        before, after = (
            sum(F.kl_div(z.log_softmax(1), mean_BC.softmax(1), reduction="batchmean") for z in item) for item in experts
        )
    assert after > before


def test_teachers_and_distillation_go_together():
    stage = {"name": "student", "epochs": 1, "branches": {"count": EXPERTS, "split": "layer2"}}
    ride, distilled = {"name": "ride"}, {"name": "ride", "distillation": {}}
    with pytest.raises(ValidationError, match="teachers: ride with these settings needs 0, 1 given"):
        StageConfig(**stage, method=ride, teachers=["teacher"])
    with pytest.raises(ValidationError, match="teachers: ride with these settings needs 1, 0 given"):
        StageConfig(**stage, method=distilled)
    assert StageConfig(**stage, method=distilled, teachers=["teacher"]).teachers == ("teacher",)


def test_another_methods_stage_may_teach(inputs):
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    teacher = METHODS["classify"](ClassifySettings(name="classify"), network, CLASSES).eval()
    method = build(distillation={})
    method.set_teachers([teacher])
    assert method.step([inputs], EARLY).loss.isfinite()
