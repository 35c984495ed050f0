"""RIDE, ResLT and distillation losses against the authors' results and plain loops."""

import numpy as np
import pytest
import torch

from facelt.config.registry import CLASS_WEIGHTS, LOSSES
from facelt.losses.experts import distillation_kl, diversity_temperature, reslt_loss, ride_loss


@pytest.mark.parametrize("reweighted", [False, True])
def test_ride_equals_the_authors_loss_before_and_after_reweighting_starts(reference, equals, reweighted):
    counts, labels = torch.from_numpy(reference["class_counts"]), torch.from_numpy(reference["labels"])
    ldam = LOSSES["ldam"](counts, max_margin=0.5, scale=30.0)
    late = {
        "weight_C": CLASS_WEIGHTS["class_balanced"](counts, beta=0.9999),
        "temperature_C": diversity_temperature(counts, 0.02),
    }
    equals(
        f"ride_ldam_epoch{170 if reweighted else 10}_drw160",
        "expert_logits",
        lambda expert: ride_loss(expert, labels, ldam, diversity=-0.2, **(late if reweighted else {})),
    )


def test_experts_move_away_from_a_mean_without_gradient():
    random = torch.Generator().manual_seed(0)
    expert = torch.randn(3, 5, 4, generator=random, dtype=torch.float64, requires_grad=True)
    labels, softmax = torch.tensor([0, 1, 2, 3, 0]), LOSSES["softmax"](torch.ones(4))
    (result,) = torch.autograd.grad(ride_loss(expert, labels, softmax, diversity=-0.3), expert)
    mean = expert.detach().mean(0).softmax(-1)
    own = torch.nn.functional.one_hot(labels, 4)
    # The gradient of cross-entropy is p - target, that of the divergence p - mean.
    p = expert.detach().softmax(-1)
    torch.testing.assert_close(result, (p - own - 0.3 * (p - mean)) / 5)


def test_rare_classes_have_lower_temperatures():
    result = diversity_temperature(torch.tensor([60, 30, 10]), 0.5)
    assert result.tolist() == pytest.approx([1, (0.45 + 0.5) / 1.4, (0.15 + 0.5) / 1.4])


@pytest.mark.parametrize("temperature", [1.0, 2.0, [1.0, 0.5, 2.0, 1.5]])
def test_distillation_is_the_divergence_from_the_teacher(temperature):
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    teacher.requires_grad_()
    student.requires_grad_()
    heat = torch.tensor(temperature, dtype=torch.float64)
    result = distillation_kl(student, teacher, heat if heat.dim() else temperature)
    for row in range(5):
        p, q = ((logits[row] / heat).exp().detach().numpy() for logits in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        assert result[row].item() == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-9)
    result.sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert not distillation_kl(student, student).abs().max() > 1e-12


def test_a_certain_teacher_has_a_finite_divergence():
    student = torch.tensor([[-500.0, 500, 0]], requires_grad=True)
    loss = distillation_kl(student, torch.tensor([[500.0, -500, 0]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 3], [0, 0, 0, 0, 0]], ids=["all shots", "no rare image"])
def test_reslt_is_the_loss_of_each_branch_and_of_their_sum(labels):
    random = torch.Generator().manual_seed(0)
    branch = torch.randn(3, 5, 4, generator=random, dtype=torch.float64)
    members = [{0, 1, 2, 3}, {2, 3}, {3}]
    member = torch.tensor([[c in classes for c in range(4)] for classes in members])
    terms = []
    for logits, classes in zip(branch, members, strict=True):
        for row, own in zip(logits, labels, strict=True):
            if own in classes:
                terms.append(-row.log_softmax(0)[own].item())
    fused = branch.sum(0).log_softmax(1)
    together = -np.mean([fused[b, own].item() for b, own in enumerate(labels)])
    result = reslt_loss(branch, torch.tensor(labels), member, branch_weight=0.9)
    assert result.item() == pytest.approx(0.9 * np.mean(terms) + 0.1 * together, rel=1e-9)
