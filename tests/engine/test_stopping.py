"""A signal, wherever it comes: the run ends there, and what goes on from it ends as a whole one does, bit by bit."""

import os
import signal

import pytest

from facelt.engine import trainer
from facelt.engine.checkpoint import Checkpoints
from facelt.engine.stopping import Stopped, is_asked
from facelt.methods import METHODS


def step_of(method: str):
    return METHODS[method], "step"


# What is going on when the signal comes, and how many of it have been before.
MOMENTS = {
    "a step": (*step_of("classify"), 1),
    "the last step of a stage": (*step_of("classify"), 7),
    "the memory pass": (METHODS["dynamic_meta"], "accumulate", 1),
    "validation": (trainer.Trainer, "validate", 1),
    "a save": (Checkpoints, "_complete", 2),
    "the end of a stage": (trainer.Trainer, "_finish", 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_run_ends_where_a_whole_one_does(
    moment, finished_run, train, tmp_path, monkeypatch, metrics, assert_same_weights
):
    owner, name, before = MOMENTS[moment]
    original, calls = getattr(owner, name), iter(range(1000))

    def signalled(self, *arguments):
        if next(calls) == before:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Stopped):
            train(tmp_path / "run", checkpoint_every=2)
    assert handlers == [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    assert not is_asked()
    folder = train(tmp_path / "run", resume=True, checkpoint_every=2)
    assert metrics(folder) == metrics(finished_run)
    for stage in ("plain", "oltr"):
        assert_same_weights(folder / stage / "model.safetensors", finished_run / stage / "model.safetensors")


def test_a_second_signal_ends_the_process_as_usual(train, tmp_path, monkeypatch):
    def twice(self, *_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(METHODS["classify"], "step", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert not is_asked()
