"""Fixtures that train the tiny recipe and read its output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from facelt.config.registry import BACKBONES, METHODS
from facelt.config.train import TrainConfig
from facelt.training.run import run
from tests.training.rank_pool import RankPool
from tests.training.thin import THIN

__all__ = [
    "assert_same_weights",
    "finished_run",
    "interrupt",
    "metrics",
    "plain_stage",
    "rank_pool",
    "saved",
    "thin_backbone",
    "train",
]


@pytest.fixture(scope="module", autouse=True)
def thin_backbone():
    """Replaces ResNet-10 by the thin backbone; test_recipes and the tests of the entries train real networks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, backbone in THIN.items():
            patch.setitem(BACKBONES, name, backbone)
        yield


@pytest.fixture(scope="session")
def finished_run(recipe, tmp_path_factory) -> Path:
    """The folder of a finished run of the recipe with the thin backbone; read only."""
    with pytest.MonkeyPatch.context() as patch:
        for name, backbone in THIN.items():
            patch.setitem(BACKBONES, name, backbone)
        return run(TrainConfig.model_validate(recipe(tmp_path_factory.mktemp("finished") / "run")))


@pytest.fixture(scope="session")
def train(recipe) -> Callable[..., Path]:
    """train(out, resume=False, **changes) -> the run's folder."""

    def train(out: Path, resume: bool = False, **changes: Any) -> Path:
        return run(TrainConfig.model_validate(recipe(out, **changes)), resume)

    return train


@pytest.fixture(scope="session")
def plain_stage(recipe, tmp_path_factory) -> Callable[..., list[dict]]:
    """plain_stage(**changes) -> the recipe's stages without the second one, the first one changed."""
    stage = recipe(tmp_path_factory.mktemp("unused"))["stages"][0]
    return lambda **changes: [{**stage, **changes}]


@pytest.fixture(scope="session")
def metrics() -> Callable[..., list[dict]]:
    """metrics(folder) -> the lines of metrics.jsonl, without the timing."""

    def read(folder: Path) -> list[dict]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in lines]

    return read


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[..., None]:
    """assert_same_weights(left, right): all tensors of two safetensors files are equal, bit by bit."""

    def compare(left_path: Path, right_path: Path) -> None:
        left, right = load_file(left_path), load_file(right_path)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert tensor.dtype == right[name].dtype
            assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), name

    return compare


@pytest.fixture(scope="session")
def saved() -> Callable[..., tuple[dict, dict]]:
    """saved(stage folder, index=0) -> (metadata, tensors by name) of a single-process checkpoint, newest first."""

    def read(folder: Path, index: int = 0) -> tuple[dict, dict]:
        path = sorted((folder / "checkpoints").glob("step-*"))[-1 - index]
        facts = json.loads(json.loads((path / "state.json").read_text())["state"])
        (shard,) = path.glob("*.safetensors")
        return facts, load_file(shard)

    return read


@pytest.fixture(scope="session")
def rank_pool():
    """Three idle processes that run functions as ranks."""
    with RankPool(3) as pool:
        yield pool


class Interrupted(Exception):
    """Ends a run from outside."""


@pytest.fixture
def interrupt(monkeypatch) -> Callable[..., type[Exception]]:
    """interrupt(method, step) ends the training once, before that step of the method, counted over epochs from 0."""

    def patch(method: str, step: int) -> type[Exception]:
        original = METHODS[method].step
        seen = iter(range(10_000))

        def interrupted(self, batches, progress):
            if next(seen) == step:
                raise Interrupted
            return original(self, batches, progress)

        monkeypatch.setattr(METHODS[method], "step", interrupted)
        return Interrupted

    return patch
