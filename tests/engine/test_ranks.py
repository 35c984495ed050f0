"""Training started by torchrun: on any number of processes the run of one, also when it is stopped in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

DRIVER = Path(__file__).with_name("frozen_train.py")
STAGES = ("plain", "oltr")
# An epoch has four steps: this is in the middle of the second stage's first.
STOP = 10


class Ranks:
    """Runs of the recipe below one folder, each from processes of its own."""

    def __init__(self, recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def train(self, name: str, world: int, number: int = 0, last: int = 0, **changes) -> subprocess.CompletedProcess:
        """Trains, or goes on with, the run `name` on so many processes."""
        # Without batch norm at work large steps diverge.
        changes = {"optim": {"lr": 0.01, "batch": 8}, "checkpoint_every": 2, **changes}
        values = self.recipe(self.folder / name, **changes)
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        seen = self.folder / f"{name}.seen" / f"{world}"
        seen.mkdir(parents=True)
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", "--max-restarts=1"]
        torchrun = start if world > 1 else []
        words = [seen, number, last, "--config", path, "--resume", "auto"]
        command = [sys.executable, *torchrun, DRIVER, *words]
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=300, env=environment()
        )

    def seen(self, name: str, world: int) -> dict[tuple, list[int]]:
        """Images of each step, those of all ranks in rank order."""
        found: dict[tuple, list[int]] = {}
        for rank in range(world):
            for line in (self.folder / f"{name}.seen" / f"{world}" / f"seen.{rank}").read_text().splitlines():
                *place, indices = json.loads(line)
                found.setdefault(tuple(place), []).extend(indices)
        return found

    def weights(self, name: str, stage: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / stage / "model.safetensors")

    def assert_ends_as(self, name: str, other: str) -> None:
        for stage in STAGES:
            own, expected = self.weights(name, stage), self.weights(other, stage)
            assert own.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(own[key], value, rtol=0, atol=1e-5, msg=f"{stage} {key}")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parents[2])}


@pytest.fixture(scope="module")
def ranks(recipe, tmp_path_factory) -> Ranks:
    """With the run `alone`, of one process, and `stopped`, of two, which one of them was asked to stop."""
    made = Ranks(recipe, tmp_path_factory.mktemp("ranks"))
    done = made.train("alone", 1)
    assert done.returncode == 0, done.stderr
    stopped = made.train("stopped", 2, signal.SIGTERM, STOP)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped as asked, the state is saved" in stopped.stdout
    return made


def losses(folder: Path) -> list[tuple]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["epoch"], line["step"], line["loss"]) for line in lines if "loss" in line]


def test_two_processes_train_as_one(ranks):
    done = ranks.train("two", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"finished: {ranks.folder / 'two'}\n"
    assert done.stderr.count("plain: epoch 1/2") == 1
    ranks.assert_ends_as("two", "alone")
    seen = ranks.seen("two", 2)
    assert seen == ranks.seen("alone", 1)
    assert all(len(images) == 8 for images in seen.values())
    found, expected = losses(ranks.folder / "two"), losses(ranks.folder / "alone")
    assert [line[:3] for line in found] == [line[:3] for line in expected]
    assert [line[3] for line in found] == pytest.approx([line[3] for line in expected], abs=1e-5)
    cards = [json.loads((ranks.folder / run / "oltr/card.json").read_text()) for run in ("two", "alone")]
    assert cards[0]["num_classes"] == cards[1]["num_classes"] == 6
    for card in cards:
        del card["config"]["out"], card["weights_sha256"]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("world", [1, 3])
def test_what_two_processes_saved_another_number_goes_on_with(ranks, world):
    name = f"stopped_{world}"
    shutil.copytree(ranks.folder / "stopped", ranks.folder / name)
    shards = list((ranks.folder / name / "oltr/checkpoints").glob("step-*/shard-*"))
    assert {path.name[:11] for path in shards} == {"shard-00001", "shard-00002"}
    done = ranks.train(name, world)
    assert done.returncode == 0, done.stderr
    before, after = ranks.seen("stopped", 2), ranks.seen(name, world)
    assert len(before) == STOP
    assert not before.keys() & after.keys()
    assert {**before, **after} == ranks.seen("alone", 1)
    ranks.assert_ends_as(name, "alone")
    assert [line[:3] for line in losses(ranks.folder / name)] == [line[:3] for line in losses(ranks.folder / "alone")]


def test_after_a_kill_torchrun_goes_on_from_the_last_checkpoint(ranks):
    done = ranks.train("killed", 2, signal.SIGKILL, STOP)
    assert done.returncode == 0, done.stderr
    ranks.assert_ends_as("killed", "alone")
    # The steps since the last checkpoint are taken again, and logged once.
    found, expected = losses(ranks.folder / "killed"), losses(ranks.folder / "alone")
    assert [line[:3] for line in found] == [line[:3] for line in expected]
    assert [line[3] for line in found] == pytest.approx([line[3] for line in expected], abs=1e-5)
    places = [json.loads(line)[:3] for line in (ranks.folder / "killed.seen/2/seen.0").read_text().splitlines()]
    assert places.count(["plain", 0, 0]) == 1
    assert 16 <= len(places) <= 18


def test_a_mistake_on_two_processes_is_a_line_and_no_hang(ranks):
    done = ranks.train("mistake", 2, optim={"lr": 0.01, "batch": 3})
    assert done.returncode == 1
    assert "error: optim.batch: 3 is too few for 2 processes, two images for each" in done.stderr


def test_when_a_process_is_killed_the_others_stop_and_say_so(ranks, recipe, tmp_path):
    """Without torchrun, which would end them itself."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", optim={"lr": 0.01, "batch": 8})))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    command = [sys.executable, DRIVER, tmp_path, signal.SIGKILL.value, 3, "--config", path]
    started = [
        subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [1, -signal.SIGKILL]
    assert "rank 0 stops because another process stopped or did not answer in time" in outputs[0][1]
    assert "Traceback" not in outputs[0][1]
    assert (tmp_path / "run/plain/checkpoints/step-00000000/state.json").is_file()
