"""Preemption: after a signal at any moment, the resumed run equals an uninterrupted one, bit by bit."""

import os
import signal

import pytest

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.data.records import RecordData
from facelt.distributed.comm import rank
from facelt.distributed.launch import Interrupted, stop_requested
from facelt.training import trainer
from facelt.training.checkpoint import Checkpoints
from facelt.training.run import run


def step_of(method: str):
    return METHODS[method], "step"


# The function during which the signal arrives, and its number of earlier calls.
MOMENTS = {
    "a step": (*step_of("classify"), 1),
    "the last step of a stage": (*step_of("classify"), 7),
    "the memory pass": (METHODS["dynamic_meta"], "observe", 1),
    "validation": (trainer.Trainer, "validate", 1),
    "a save": (Checkpoints, "commit", 2),
    "the end of a stage": (trainer.Trainer, "_finalize", 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_resume_after_a_signal_is_bit_exact(
    moment, finished_run, train, tmp_path, monkeypatch, metrics, assert_same_weights
):
    owner, name, before = MOMENTS[moment]
    original, calls = getattr(owner, name), iter(range(1000))

    def signalled(self, *arguments, **options):
        if next(calls) == before:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", checkpoint_every=2)
    assert handlers == [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    assert not stop_requested()
    folder = train(tmp_path / "run", resume=True, checkpoint_every=2)
    assert metrics(folder) == metrics(finished_run)
    for stage in ("plain", "oltr"):
        assert_same_weights(folder / stage / "model.safetensors", finished_run / stage / "model.safetensors")


def test_a_signal_while_data_opens_writes_nothing(train, tmp_path, monkeypatch):
    original = RecordData.open

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(RecordData, "open", signalled)
    with pytest.raises(Interrupted):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Moments at which one of two ranks receives a signal, and the signal.
OF_RANKS = {
    "the memory pass": signal.SIGTERM,
    "validation": signal.SIGINT,
    "a save": signal.SIGTERM,
    "the end of a stage": signal.SIGINT,
}


def run_signalled(values: dict, moment: str, number: int) -> None:
    """Stops the run on all ranks by a signal to the second one, then resumes it."""
    owner, name, before = MOMENTS[moment]
    original, calls = getattr(owner, name), iter(range(1000))

    def signalled(self, *arguments, **options):
        if rank() and next(calls) == before:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **options)

    config = TrainConfig.model_validate(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted):
            run(config)
    assert not stop_requested()
    run(config, resume=True)


def run_all_signalled(straight: dict, stopped: dict[str, dict]) -> None:
    run(TrainConfig.model_validate(straight))
    for moment, values in stopped.items():
        run_signalled(values, moment, OF_RANKS[moment])


@pytest.mark.parametrize("in_background", [False, True], ids=["waiting", "background"])
def test_resume_after_a_signal_to_one_of_two_ranks_is_bit_exact(
    recipe, rank_pool, tmp_path, metrics, assert_same_weights, in_background
):
    # A save averages the ranks' running statistics, which rounds; saving after every step rounds equally in all runs.
    settings = {"checkpoint_every": 1, "checkpoint_async": in_background}
    stopped = {moment: recipe(tmp_path / moment.replace(" ", "_"), **settings) for moment in OF_RANKS}
    rank_pool.run(run_all_signalled, 2, recipe(tmp_path / "straight", **settings), stopped)
    for values in stopped.values():
        folder = tmp_path / values["out"]
        assert metrics(folder) == metrics(tmp_path / "straight")
        for stage in ("plain", "oltr"):
            assert_same_weights(
                folder / stage / "model.safetensors", tmp_path / "straight" / stage / "model.safetensors"
            )


def test_a_second_signal_ends_the_process_as_usual(train, tmp_path, monkeypatch):
    def twice(self, *_):
        # Two sent to the process at once may reach another thread as one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(METHODS["classify"], "step", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert not stop_requested()
