"""Runs that fail before a trained step is saved: the same folder runs again, with the same recipe or a changed one."""

import json

import pytest
import torch
import yaml

from facelt.config.registry import METHODS
from facelt.data.dataset import ImageDataset
from facelt.errors import UserError
from facelt.training.run_folder import RunFolder


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def no_host_memory(*_):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory")


def unreadable(*_):
    raise UserError("9 images cannot be used, data.max_bad_images allows 0: train.rec: record 1")


FAILURES = {
    "memory of the device": (METHODS["classify"], "step", out_of_memory, r"^stage plain: out of memory \(CUDA out of"),
    "memory of the host": (
        METHODS["classify"],
        "step",
        no_host_memory,
        r"\(.*; free some and add --resume",
    ),
    "unreadable images": (ImageDataset, "fill_batch", unreadable, "9 images cannot be used"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_same_folder_runs_after_a_failed_first_step(
    failure, train, plain_stage, recipe, tmp_path, monkeypatch, metrics, saved
):
    owner, name, fail, message = FAILURES[failure]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(UserError, match=message) as caught:
            train(tmp_path / "run", stages=plain_stage(epochs=1))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        train(tmp_path / "run", stages=plain_stage(epochs=1))
    # A changed recipe may have other stages.
    stages = [{**stage, "name": "other"} for stage in plain_stage(epochs=1)]
    folder = train(tmp_path / "run", resume=True, stages=stages, optim={"lr": 0.01, "batch": 4}, seed=3)
    straight = train(tmp_path / "straight", stages=stages, optim={"lr": 0.01, "batch": 4}, seed=3)
    assert metrics(folder) == metrics(straight)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in straight.iterdir())
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["batch"] == 4


def test_a_divergence_at_once_names_this_run_for_a_lower_learning_rate(train, plain_stage, tmp_path):
    with pytest.raises(UserError, match=r"lower optim\.lr in this run, with --resume, or check the images"):
        train(tmp_path / "run", stages=plain_stage(epochs=1), optim={"lr": 1e30, "batch": 8}, max_nonfinite_steps=0)
    (tmp_path / "run/notes.txt").write_text("mine")
    folder = train(tmp_path / "run", resume=True, stages=plain_stage(epochs=1))
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "stages.json", "metrics.jsonl", "tensorboard", "plain", "notes.txt")
    }


def test_memory_that_runs_out_later_needs_a_new_run_for_other_settings(train, plain_stage, tmp_path, monkeypatch):
    original, calls = METHODS["classify"].step, iter(range(100))

    def later(*arguments):
        return original(*arguments) if next(calls) < 5 else out_of_memory()

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["classify"], "step", later)
        with pytest.raises(UserError, match=r"raise optim\.accumulate in a new run, with another out=FOLDER"):
            train(tmp_path / "run", stages=plain_stage())
    with pytest.raises(UserError, match=r"other settings \(optim\.batch\)"):
        train(tmp_path / "run", resume=True, stages=plain_stage(), optim={"lr": 0.05, "batch": 4})
    folder = train(tmp_path / "run", resume=True, stages=plain_stage())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines if "loss" in line] == [
        (e, s) for e in (0, 1) for s in range(4)
    ]


def test_other_errors_are_not_taken_for_a_lack_of_memory(train, plain_stage, tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(METHODS["classify"], "step", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tmp_path / "run", stages=plain_stage())


@pytest.mark.parametrize("text", ["", "{}", '["../elsewhere"]', "[1]"])
def test_a_damaged_list_of_stages_is_refused_and_removes_nothing(train, plain_stage, tmp_path, monkeypatch, text):
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["classify"], "step", out_of_memory)
        with pytest.raises(UserError):
            train(tmp_path / "run", stages=plain_stage(epochs=1))
    (tmp_path / "run/stages.json").write_text(text)
    with pytest.raises(UserError, match=r"stages\.json: not a list of stages; .* set another out=FOLDER"):
        train(tmp_path / "run", resume=True, stages=plain_stage(epochs=1))
    assert RunFolder(tmp_path / "run").checkpoints("plain").is_dir()
