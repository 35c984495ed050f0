"""Asynchronous checkpoints: a snapshot of the state, one save at a time, and errors reported."""

import os
import threading

import pytest
import torch

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank
from facelt.errors import UserError
from facelt.training import checkpoint
from facelt.training.checkpoint import Checkpoints
from facelt.training.run import run


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"method.weight": torch.full((2, 3), value), "method.counter": torch.tensor(int(value))}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, in_background=True)


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Blocks background saves before they compute digests until the event is set."""
    event, original = threading.Event(), checkpoint._digests
    monkeypatch.setattr(checkpoint, "_digests", lambda folder: (event.wait(30), original(folder))[1])
    yield event
    event.set()


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def restored(checkpoints: Checkpoints) -> tuple[dict, dict]:
    return checkpoints.restore(lambda facts: tensors(0), {}, print)


def test_a_save_is_a_snapshot_and_published_only_when_complete(checkpoints, held):
    live, facts = tensors(1), {"bad_images": {}}
    checkpoints.save(10, live, {}, facts)
    live["method.weight"].fill_(7)
    live["method.counter"].fill_(7)
    facts["bad_images"]["late"] = "met after the save"
    checkpoints.commit(wait=False)
    assert names(checkpoints) == [".step-00000010.new"]
    held.set()
    checkpoints.commit()
    assert names(checkpoints) == ["step-00000010"]
    checkpoints.commit()
    saved, loaded = restored(checkpoints)
    assert saved["bad_images"] == {}
    assert all(torch.equal(loaded[name], value) for name, value in tensors(1).items())


def test_commit_without_waiting_publishes_a_complete_save(checkpoints):
    checkpoints.save(10, tensors(1), {}, {})
    for _ in range(1000):
        checkpoints.commit(wait=False)
        if names(checkpoints) == ["step-00000010"]:
            return
        threading.Event().wait(0.01)
    pytest.fail("the save never took its name")


def test_a_save_waits_for_the_pending_one(checkpoints, held):
    checkpoints.save(10, tensors(1), {}, {})
    threading.Timer(0.2, held.set).start()
    checkpoints.save(20, tensors(2), {}, {})
    assert held.is_set()
    assert "step-00000010" in names(checkpoints)
    checkpoints.commit()
    assert names(checkpoints) == ["step-00000010", "step-00000020"]


def test_commit_raises_a_background_error(checkpoints, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    checkpoints.save(10, tensors(1), {}, {})
    checkpoints.commit()
    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(20, tensors(2), {}, {})
    with pytest.raises(UserError, match=r"step-00000020: cannot read or write the checkpoint \(No space"):
        checkpoints.commit()
    assert names(checkpoints) == ["step-00000010"]
    assert restored(checkpoints)[1]["method.counter"] == 1


def test_resume_from_background_saves_is_bit_exact(
    train, finished_run, tmp_path, interrupt, metrics, assert_same_weights
):
    settings = {"checkpoint_every": 1, "checkpoint_async": True}
    with pytest.raises(interrupt("dynamic_meta", 5)):
        train(tmp_path / "run", **settings)
    paths = Checkpoints(tmp_path / "run/oltr/checkpoints", keep=2).paths()
    assert len(paths) == 2
    folder = train(tmp_path / "run", resume=True, **settings)
    assert metrics(folder) == metrics(finished_run)
    for stage in ("plain", "oltr"):
        assert_same_weights(folder / stage / "model.safetensors", finished_run / stage / "model.safetensors")


def test_steps_are_logged_once_after_a_kill_before_a_stages_first_save_is_complete(
    train, tmp_path, monkeypatch, metrics, held, finished_run
):
    method, calls = METHODS["dynamic_meta"], iter(range(100))
    observe, step = method.observe, method.step
    slow = threading.Timer(1, held.set)
    held.set()

    def observed(*arguments):
        # Before the first save of the second stage: the disk is slow, for longer than two steps take.
        if not slow.is_alive():
            held.clear()
            slow.start()
        return observe(*arguments)

    def killed(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(method, "observe", observed)
        patch.setattr(method, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", checkpoint_async=True)
    slow.join()
    assert metrics(train(tmp_path / "run", resume=True, checkpoint_async=True)) == metrics(finished_run)


def run_interrupted(values: dict, step: int) -> None:
    """Interrupts the run on all ranks at the same step, then resumes it."""
    original, seen = METHODS["dynamic_meta"].step, iter(range(1000))

    def interrupted(self, batches, progress):
        if next(seen) == step:
            raise UserError("interrupted")
        return original(self, batches, progress)

    config = TrainConfig.model_validate(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS["dynamic_meta"], "step", interrupted)
        with pytest.raises(UserError, match="interrupted"):
            run(config)
    run(config, resume=True)


def run_twice(straight: dict, broken: dict) -> None:
    run(TrainConfig.model_validate(straight))
    run_interrupted(broken, 5)


def test_resume_from_background_saves_is_bit_exact_on_two_ranks(
    recipe, finished_run, rank_pool, tmp_path, metrics, assert_same_weights
):
    stage = {**recipe(tmp_path)["stages"][1], "init_from": str(finished_run / "plain")}
    # A save averages the ranks' running statistics, which rounds, so both runs save at the same steps.
    straight, broken = (recipe(tmp_path / name, stages=[stage], checkpoint_every=2) for name in ("straight", "broken"))
    rank_pool.run(run_twice, 2, straight, {**broken, "checkpoint_async": True})
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
    assert_same_weights(*(tmp_path / name / "oltr/model.safetensors" for name in ("broken", "straight")))


def save_with_one_full_disk(folder) -> str:
    """Returns the error of each rank if the second one cannot compute its digests."""
    checkpoints = Checkpoints(folder, keep=2, in_background=True)
    original = checkpoint.sync

    def full(path):
        if rank():
            raise OSError(28, "No space left on device")
        original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "sync", full)
        checkpoints.save(10, {f"method.{rank()}": torch.ones(3)}, {}, {})
        with pytest.raises(UserError) as caught:
            checkpoints.commit()
    return str(caught.value)


def test_all_ranks_stop_when_one_cannot_save(rank_pool, tmp_path):
    messages = rank_pool.run(save_with_one_full_disk, 2, tmp_path / "checkpoints")
    assert len(set(messages)) == 1
    assert "step-00000010: cannot read or write the checkpoint (No space left on device)" in messages[0]
    assert not list((tmp_path / "checkpoints").iterdir())
