"""Non-finite check of a step: nothing changes on the device, and the host reads it later."""

import os
import signal

import pytest
import torch

from facelt.config.registry import METHODS
from facelt.config.train import OptimConfig
from facelt.errors import Interrupted, UserError
from facelt.methods.base import TrainBatch
from facelt.training.checkpoint import Checkpoints
from facelt.training.optim import Optimisers
from facelt.training.step_check import BufferSnapshot, HostCopy, find_inf
from tests.methods.small import run_dataset_passes
from tests.test_fake_cuda import CASES, CONTEXT, COUNTS, STAGE, build_with_teachers, image_size, takes_steps
from tests.training.test_nonfinite import spoil


def bits(values: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.detach().clone().numpy().tobytes() for name, value in values.items()}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("case", list(filter(takes_steps, CASES)))
def test_a_step_that_is_not_finite_changes_no_bit_of_any_method(case, fused):
    method, size = build_with_teachers(case), image_size(case)
    torch.manual_seed(0)
    label_B = torch.arange(4)
    batch = TrainBatch(torch.randn(4, 3, size, size), label_B)
    bad = TrainBatch(torch.full_like(batch.image_B3HW, torch.nan), label_B)
    label_N = torch.arange(len(COUNTS)).repeat(4)
    method.begin_epoch(CONTEXT, {})
    run_dataset_passes(method, TrainBatch(torch.randn(len(label_N), 3, size, size), label_N))
    snapshot, optimisers = BufferSnapshot(method.network), Optimisers(method, OptimConfig(fused=fused), STAGE)

    def step(inputs: TrainBatch) -> bool:
        snapshot.take()
        optimisers.zero_grad()
        output = method.step([inputs for _ in method.sampler_specs()], CONTEXT)
        output.loss.backward()
        found_inf = find_inf(output.loss, optimisers.gradient_norm())
        snapshot.restore(found_inf == 0)
        optimisers.step(CONTEXT, found_inf)
        output.after(found_inf == 0)
        return not found_inf

    def state() -> dict[str, bytes]:
        momentum = {str(number): value for number, value in enumerate(optimisers.momentum().values())}
        return bits(method.state_dict() | momentum)

    initial = bits(method.state_dict())
    assert not step(bad)
    assert bits(method.state_dict()) == initial
    assert not any(value.any() for value in optimisers.momentum().values())
    assert step(batch)
    # The sum with +0 would change this bit.
    with torch.no_grad():
        for value in method.state_dict().values():
            if value.is_floating_point() and value.numel() > 1:
                value.view(-1)[0] = -0.0
    before = state()
    assert before.keys() > initial.keys()
    assert sum(before[name] != initial[name] for name in initial) > 1
    assert not step(bad)
    assert state() == before


def test_a_snapshot_restores_only_after_a_step_that_is_not_finite():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm1d(2))
    snapshot = BufferSnapshot(network)
    before = bits(network.state_dict())
    snapshot.take()
    network[0](torch.randn(4, 3, 2, 2))
    changed = bits(network.state_dict())
    assert sum(changed[name] != value for name, value in before.items()) == 3
    snapshot.restore(torch.tensor(True))
    assert bits(network.state_dict()) == changed
    snapshot.restore(torch.tensor(False))
    assert bits(network.state_dict()) == before


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, int]]:
    """Pairs of numbers of steps, made when a step's check is read and made before that step."""
    numbers, pairs = {}, []
    create, read = HostCopy.__init__, HostCopy.read

    def created(self, value_F):
        numbers[self] = len(numbers)
        create(self, value_F)

    def counted(self):
        pairs.append((len(numbers), numbers[self]))
        return read(self)

    monkeypatch.setattr(HostCopy, "__init__", created)
    monkeypatch.setattr(HostCopy, "read", counted)
    return pairs


def test_checks_are_read_in_order_when_a_later_step_is_logged(train, plain_stage, tmp_path, reads):
    # Steps 0 and 2 of an epoch of four are logged: the second step reads the first one, the fourth the next two.
    train(tmp_path / "run", stages=plain_stage(), log_every=2)
    assert reads == [(2, 0), (4, 1), (4, 2), (4, 3), (6, 4), (8, 5), (8, 6), (8, 7)]


def test_a_checkpoint_has_no_step_that_is_unchecked(train, plain_stage, tmp_path, monkeypatch, reads):
    save, saved_at = Checkpoints.save, []

    def noted(self, step, *arguments):
        saved_at.append((step, len(reads)))
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(tmp_path / "run", stages=plain_stage(), log_every=100, checkpoint_every=3)
    assert saved_at == [(step, step) for step in (0, 3, 4, 7, 8)]


def test_a_stop_records_what_the_host_has_not_read(train, plain_stage, tmp_path, monkeypatch, saved):
    spoil(monkeypatch, {1})
    spoiled, calls = METHODS["classify"].step, iter(range(100))

    def signalled(self, batches, context):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return spoiled(self, batches, context)

    monkeypatch.setattr(METHODS["classify"], "step", signalled)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stages=plain_stage(), log_every=100)
    assert [path.name for path in (tmp_path / "run/nonfinite").iterdir()] == ["plain-0-1.json"]
    facts, _ = saved(tmp_path / "run/plain")
    assert (facts["step"], facts["nonfinite_steps"]) == (3, 1)


def test_the_error_names_the_step_and_not_that_in_which_it_is_read(train, plain_stage, tmp_path, monkeypatch):
    states = spoil(monkeypatch, {1})
    with pytest.raises(
        UserError, match=r"^stage plain, epoch 0, step 1: the loss \(nan\).*/plain-0-1\.json$"
    ) as caught:
        train(tmp_path / "run", stages=plain_stage(), log_every=100, max_nonfinite_steps=0)
    assert len(states) == 4
    assert f"last checkpoint: {tmp_path / 'run/plain/checkpoints/step-00000000'};" in str(caught.value)
