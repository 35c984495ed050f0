"""Preemption: after a signal at any moment, the resumed run equals an uninterrupted one, bit by bit."""

import contextlib
import io
import os
import signal

import pytest
import torch.distributed as dist
import yaml

from facelt.cli.train import train as train_command
from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.data.records import RecordData
from facelt.distributed.comm import rank
from facelt.distributed.launch import received_signal
from facelt.errors import Interrupted
from facelt.training import trainer
from facelt.training.checkpoint import Checkpoints
from facelt.training.run import run
from facelt.utils.cli import single_command


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
    assert not received_signal()
    folder = train(tmp_path / "run", resume=True, checkpoint_every=2)
    assert metrics(folder) == metrics(finished_run)
    for stage in ("plain", "oltr"):
        assert_same_weights(folder / stage / "model.safetensors", finished_run / stage / "model.safetensors")


@pytest.mark.parametrize("before", [4, 5], ids=["in the short batch", "after it"])
def test_resume_around_the_images_left_of_an_epoch_is_bit_exact(
    before, recipe, train, tmp_path, monkeypatch, metrics, assert_same_weights
):
    """37 training images in batches of 8: the fifth has five."""
    data = {**recipe(tmp_path)["data"], "drop_last": False}
    train(tmp_path / "straight", data=data)
    owner, name = step_of("classify")
    original, sizes = getattr(owner, name), []

    def signalled(self, batches, context):
        sizes.append(len(batches[0].label_B))
        if len(sizes) == before + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, context)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", data=data, checkpoint_every=2)
    assert sizes[:5] == [8, 8, 8, 8, 5]
    train(tmp_path / "run", resume=True, data=data, checkpoint_every=2)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")
    for stage in ("plain", "oltr"):
        files = [tmp_path / folder / stage / "model.safetensors" for folder in ("run", "straight")]
        assert_same_weights(*files)


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
    assert not received_signal()
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_the_exit_code_of_an_interrupted_command_is_that_of_its_signal(
    recipe, plain_stage, cli, tmp_path, monkeypatch, number
):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "run", stages=plain_stage(epochs=1))))
    command = ("train", "--config", tmp_path / "recipe.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(RecordData, "open", lambda *_: signal.raise_signal(number))
        assert cli(*command) == (128 + number, "", "interrupted; run the same command again\n")
    assert not (tmp_path / "run").exists()
    original = METHODS["classify"].step

    def signalled(*arguments):
        signal.raise_signal(number)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["classify"], "step", signalled)
        code, out, error = cli(*command)
    assert (code, out) == (128 + number, "")
    assert error.splitlines()[-1] == f"interrupted; checkpoint saved in {tmp_path / 'run'}, continue with --resume"
    assert cli(*command, "--resume")[0] == 0


def exit_of_train(words: list[str]) -> tuple[int, str]:
    """Returns exit code and stderr of `facelt train` on this rank; the second one receives a signal in a step."""
    original, error = METHODS["classify"].step, io.StringIO()

    def signalled(*arguments):
        if rank():
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        patch.setattr(METHODS["classify"], "step", signalled)
        with pytest.raises(SystemExit) as end:
            single_command(train_command, words)
    dist.destroy_process_group()
    return end.value.code, error.getvalue()


def test_all_ranks_exit_with_the_signal_of_one_and_the_first_says_so(recipe, rank_pool, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "run")))
    words = ["--config", str(tmp_path / "recipe.yaml")]
    (code, error), other = rank_pool.run(exit_of_train, 2, words, group=False)
    assert (code, other) == (143, (143, ""))
    assert error.count("interrupted; checkpoint saved in ") == 1
    assert [path.name for path in (tmp_path / "run/plain/checkpoints").iterdir()][-1:] != []


def test_a_second_signal_ends_the_process_as_usual(train, tmp_path, monkeypatch):
    def twice(self, *_):
        # Two sent to the process at once may reach another thread as one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(METHODS["classify"], "step", twice)
    # A background job of a shell starts with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not received_signal()
