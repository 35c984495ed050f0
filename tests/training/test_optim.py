"""Optimisers: learning rates by plain formulas, parameter groups, and frozen parts."""

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.train import OptimConfig, ScheduleConfig, StageConfig, TrainConfig
from facelt.inference.model import build_method
from facelt.methods.base import StepContext
from facelt.training.optim import Optimisers, RowSGD, learning_rate_factor


def factors(epochs: int, steps: int, **schedule) -> list[float]:
    config = ScheduleConfig(**schedule)
    places = [(epoch, step) for epoch in range(epochs) for step in range(steps)]
    return [learning_rate_factor(config, StepContext(epoch, epochs, step, steps)) for epoch, step in places]


def test_step_schedule():
    expected = [1.0] * 6 + [0.1] * 6 + [0.01] * 3
    assert factors(5, 3, name="step", step_size=2) == pytest.approx(expected)


def test_cosine_schedule():
    expected = [0.5 * (1 + math.cos(math.pi * number / 20)) for number in range(20)]
    assert factors(4, 5, name="cosine") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_linear_warm_up(name):
    rates = factors(6, 4, name=name, warmup_epochs=2, step_size=100)
    # Eight steps of warm-up, the ninth at the full rate.
    assert rates[:9] == pytest.approx([number / 9 for number in range(1, 10)])
    after = [0.5 * (1 + math.cos(math.pi * number / 16)) if name == "cosine" else 1.0 for number in range(16)]
    assert rates[8:] == pytest.approx(after)


def test_a_warm_up_longer_than_the_stage_never_reaches_the_full_rate():
    rates = factors(2, 4, name="cosine", warmup_epochs=3)
    assert rates == sorted(rates)
    assert rates[-1] < 1


def optimisers_of(recipe, tmp_path, **stage):
    values = recipe(tmp_path / "run")
    values["stages"] = [{**values["stages"][1], "init_from": None, **stage}]
    config = TrainConfig.model_validate(values)
    torch.manual_seed(0)
    method = build_method(config, config.stages[0], 6)
    for part in config.stages[0].freeze:
        getattr(method.network, part).requires_grad_(False)
    return Optimisers(method, config.stages[0].optim or config.optim, config.stages[0]), method


def test_released_centroids_have_their_own_optimiser_and_tracked_ones_none(recipe, tmp_path):
    released, method = optimisers_of(recipe, tmp_path)
    groups = [[group["name"] for group in groups] for groups in released.groups()]
    assert groups == [["network", "head"], ["memory"]]
    assert any(parameter is method.memory.centroid_CD for parameter in released.parameters())
    tracking, _ = optimisers_of(recipe, tmp_path, method={"name": "dynamic_meta", "centroid_update": "tracking"})
    groups = [[group["name"] for group in groups] for groups in tracking.groups()]
    assert groups == [["network", "head"]]


def test_every_parameter_that_learns_is_in_one_group_once(recipe, tmp_path):
    optimisers, method = optimisers_of(recipe, tmp_path, freeze=["backbone"])
    ids = [id(parameter) for parameter in optimisers.parameters()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}


def test_each_part_has_its_share_of_the_rate_times_the_schedule(recipe, tmp_path):
    shares = {"network": 0.25, "head": 2.0, "memory": 0.5}
    optimisers, method = optimisers_of(recipe, tmp_path, lr_mult=shares, schedule={"name": "step", "step_size": 1})
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    for parameter in optimisers.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimisers.step(StepContext(1, 2, 0, 4)) == pytest.approx(0.05 * 2.0 * 0.1)
    for name, share in (("network.backbone.conv1.weight", 0.25), ("head.classifier.weight", 2.0)):
        moved = before[name] - dict(method.named_parameters())[name].detach()
        expected = 0.05 * share * 0.1 * (1 + 5e-4 * before[name])
        assert torch.allclose(moved, expected, rtol=1e-3, atol=1e-6)
    moved = -method.memory.centroid_CD.detach()
    assert torch.allclose(moved, torch.full_like(moved, 0.05 * 0.5 * 0.1))


def test_the_gradient_norm_shows_a_single_bad_entry(recipe, tmp_path):
    optimisers, _ = optimisers_of(recipe, tmp_path)
    parameters = optimisers.parameters()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    total = sum(parameter.numel() for parameter in parameters)
    assert optimisers.gradient_norm().item() == pytest.approx(math.sqrt(total), rel=1e-5)
    parameters[-1].grad.view(-1)[0] = torch.inf
    assert not math.isfinite(optimisers.gradient_norm().item())


def test_frozen_parts_do_not_change(train, recipe, finished_run, tmp_path):
    stage = {
        **recipe(tmp_path)["stages"][1],
        "init_from": str(finished_run / "plain"),
        "freeze": ["backbone"],
        "epochs": 1,
    }
    folder = train(tmp_path / "run", stages=[stage])
    before = load_file(finished_run / "plain/model.safetensors")
    after = load_file(folder / "oltr/model.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    backbone = [name for name in before if ".backbone." in name and not name.endswith(statistics)]
    assert len(backbone) > 10
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert not torch.equal(before["network.embedding.fc.weight"], after["network.embedding.fc.weight"])
    assert not torch.equal(before["head.weight"], after["head.hallucinator.weight"])


def test_momentum_and_decay_come_from_the_configuration(recipe, tmp_path):
    _, method = optimisers_of(recipe, tmp_path)
    stage = StageConfig(name="x", method={"name": "dynamic_meta"}, epochs=1)
    groups_of = Optimisers(method, OptimConfig(lr=0.3, momentum=0.7, weight_decay=0.01), stage).groups()
    assert [(g["momentum"], g["weight_decay"]) for groups in groups_of for g in groups] == [(0.7, 0.01)] * 3


def test_milestones_are_shares_of_the_stage_and_keep_its_shape():
    assert factors(10, 1, name="multistep", milestones=[0.8, 0.9], gamma=0.1) == pytest.approx([1.0] * 8 + [0.1, 0.01])
    whole = factors(200, 1, name="multistep", milestones=[0.8, 0.9], gamma=0.01, warmup_epochs=5)
    assert [whole.index(rate) for rate in sorted(set(whole))[:2]] == [180, 160]
    # A share that floating point cannot hold does not shift an epoch.
    assert factors(30, 1, name="multistep", milestones=[0.7], gamma=0.1).index(0.1) == 21
    assert set(factors(3, 2, name="constant")) == {1.0}


def test_the_rate_drops_after_exact_numbers_of_epochs():
    rates = factors(12, 2, name="multistep", at=[3, 7], gamma=0.1)
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 8 + [0.01] * 10)
    assert factors(5, 1, name="multistep", at=[3, 7], gamma=0.1) == pytest.approx([1.0] * 3 + [0.1] * 2)
    # The default milestones, 0.8 and 0.9, are gone; another validation of the values changes nothing.
    schedule = ScheduleConfig(name="multistep", at=[3, 7])
    assert schedule.milestones == ()
    assert ScheduleConfig.model_validate(schedule.model_dump()) == schedule


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "multistep", "at": [3], "milestones": [0.8, 0.9]}, "at: the epochs of `at` replace milestones"),
        ({"name": "step", "at": [3]}, "at: only the schedule multistep has drops, not step"),
        ({"at": [3]}, "at: only the schedule multistep has drops, not step"),
        ({"name": "multistep", "at": [7, 3]}, r"at: \[7, 3\] must be in ascending order"),
        ({"name": "multistep", "at": [3, 3]}, r"at: \[3, 3\] must be in ascending order"),
        ({"name": "multistep", "at": [0, 3]}, "greater than or equal to 1"),
        ({"name": "multistep", "at": 3}, "at"),
    ],
)
def test_drops_that_contradict_the_schedule_are_refused(schedule, message):
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig(**schedule)


@pytest.mark.parametrize("nesterov", [False, True], ids=["plain momentum", "nesterov"])
def test_the_fused_kernel_equals_the_plain_update_up_to_rounding(recipe, tmp_path, nesterov):
    ends = []
    for fused in (True, False):
        optim = {"lr": 0.05, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.01, "fused": fused, "batch": 8}
        optimisers, method = optimisers_of(recipe, tmp_path, optim=optim)
        assert all(group["fused"] == fused for groups in optimisers.groups() for group in groups)
        random = torch.Generator().manual_seed(0)
        for step in range(4):
            for parameter in optimisers.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random)
            # The third one is skipped.
            optimisers.step(StepContext(0, 1, step, 4), torch.tensor(float(step == 2)))
        ends.append([*method.parameters(), *optimisers.momentum().values()])
    for fused, plain in zip(*ends, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


def test_the_order_of_dimensions_of_a_gradient_does_not_matter():
    start, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    parameter = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    parameter.grad = gradient.clone()
    assert parameter.grad.stride() != parameter.stride()
    RowSGD([parameter], lr=0.5, fused=True).step()
    torch.testing.assert_close(parameter.detach(), start - 0.5 * gradient)


def test_nesterov_moves_the_rows_of_a_sparse_gradient_as_torch_moves_a_dense_one():
    random = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, generator=random), torch.randn(3, 4, 3, generator=random)
    ends = []
    for kind, sparse in ((torch.optim.SGD, False), (RowSGD, True)):
        parameter = torch.nn.Parameter(start.clone())
        optimiser = kind([parameter], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
        for gradient in gradients:
            # As two micro-batches that name the same rows.
            half = (gradient / 2).to_sparse(1)
            row_K, value_KD = torch.cat([half.indices()] * 2, dim=1), torch.cat([half.values()] * 2)
            twice = torch.sparse_coo_tensor(row_K, value_KD, gradient.shape, check_invariants=True)
            parameter.grad = twice if sparse else gradient.clone()
            optimiser.step()
        ends.append(parameter.detach())
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-7)
