"""Distributed training equals training in one process, also after a kill and a stop."""

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

from tests.training.frozen import read_seen, run_frozen

DRIVER = Path(__file__).with_name("frozen_train.py")
STAGES = ("plain", "oltr")
# An epoch has four steps, and every second one is saved. The first start is killed after three steps; the second goes
# on after two and is stopped in the middle of the second stage's first epoch.
KILL, STOP = 3, 10
SIGNALS = f"{signal.SIGKILL.value}@{KILL},{signal.SIGTERM.value}@{STOP - 2}"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")


class Runs:
    """Runs of the recipe below one folder, by name, with the images they used."""

    def __init__(self, recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def values(self, name: str, **changes) -> dict:
        # With frozen batch norm large steps diverge.
        changes = {"optim": {"lr": 0.01, "batch": 8}, "checkpoint_every": 2, **changes}
        return self.recipe(self.folder / name, **changes)

    def seen(self, name: str) -> Path:
        folder = self.folder / f"{name}.seen"
        folder.mkdir(exist_ok=True)
        return folder

    def command(self, name: str, signals: str, start: tuple = (), **changes) -> list[str]:
        """Returns the command line of the driver."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.values(name, **changes)))
        words = [sys.executable, *start, DRIVER, self.seen(name), signals, "--config", path, "--resume", "auto"]
        return [str(word) for word in words]

    def losses(self, name: str) -> list[tuple]:
        lines = map(json.loads, (self.folder / name / "metrics.jsonl").read_text().splitlines())
        return [(line["stage"], line["epoch"], line["step"], line["loss"]) for line in lines if "loss" in line]

    def assert_same(self, name: str, other: str) -> None:
        """Checks for equal weights, and that every step was logged once with equal losses."""
        for stage in STAGES:
            own, expected = (load_file(self.folder / run / stage / "model.safetensors") for run in (name, other))
            assert own.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(own[key], value, rtol=0, atol=1e-5, msg=f"{stage} {key}")
        losses, expected = self.losses(name), self.losses(other)
        assert [line[:3] for line in losses] == [line[:3] for line in expected]
        assert [line[3] for line in losses] == pytest.approx([line[3] for line in expected], abs=1e-5)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parents[2])}


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory) -> Runs:
    """Runs, with the single-process run `alone`."""
    runs = Runs(recipe, tmp_path_factory.mktemp("ranks"))
    run_frozen(runs.values("alone"), runs.seen("alone"))
    return runs


@pytest.fixture(scope="module")
def stopped(runs) -> subprocess.CompletedProcess:
    """Result of torchrun for the run `stopped` on two processes: killed, restarted and stopped."""
    command = runs.command("stopped", SIGNALS, TORCHRUN)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


def test_two_processes_train_like_one(runs, rank_pool):
    rank_pool.run(run_frozen, 2, runs.values("two"), runs.seen("two"))
    runs.assert_same("two", "alone")
    seen = read_seen(runs.seen("two"))
    assert seen == read_seen(runs.seen("alone"))
    assert all(len(images) == 8 for images in seen.values())
    cards = [json.loads((runs.folder / run / "oltr/card.json").read_text()) for run in ("two", "alone")]
    assert cards[0]["num_classes"] == cards[1]["num_classes"] == 6
    for card in cards:
        del card["config"]["out"], card["weights_sha256"]
    assert cards[0] == cards[1]


def test_two_processes_share_the_images_left_of_an_epoch(runs, rank_pool):
    data = {**runs.values("x")["data"], "drop_last": False}
    run_frozen(runs.values("rest", data=data), runs.seen("rest"))
    rank_pool.run(run_frozen, 2, runs.values("two_rest", data=data), runs.seen("two_rest"))
    runs.assert_same("two_rest", "rest")
    seen = read_seen(runs.seen("two_rest"))
    assert seen == read_seen(runs.seen("rest"))
    # 37 training images in batches of 8.
    assert [len(seen["plain", 0, step]) for step in range(5)] == [8, 8, 8, 8, 5]


def test_torchrun_resumes_after_a_kill_and_a_signal_saves_a_checkpoint(runs, stopped):
    assert stopped.returncode == 1, stopped.stderr
    assert stopped.stdout == ""
    line = f"interrupted; checkpoint saved in {runs.folder / 'stopped'}, continue with --resume\n"
    assert stopped.stderr.count(line) == 1
    assert stopped.stderr.count("plain: epoch 1/2  validation_accuracy") == 1
    places = [json.loads(line)[:3] for line in (runs.seen("stopped") / "1").read_text().splitlines()]
    assert places.count(["plain", 0, 0]) == places.count(["plain", 0, 1]) == 1
    assert len(read_seen(runs.seen("stopped"))) == STOP
    shards = (runs.folder / "stopped/oltr/checkpoints").glob("step-*/shard-*")
    assert {path.name[:11] for path in shards} == {"shard-00001", "shard-00002"}


@pytest.mark.parametrize("world", [1, 3])
def test_resume_on_another_number_of_processes(runs, stopped, rank_pool, world):
    name = f"stopped_{world}"
    shutil.copytree(runs.folder / "stopped", runs.folder / name)
    if world == 1:
        run_frozen(runs.values(name), runs.seen(name))
    else:
        rank_pool.run(run_frozen, world, runs.values(name), runs.seen(name))
    before, after = read_seen(runs.seen("stopped")), read_seen(runs.seen(name))
    assert not before.keys() & after.keys()
    assert {**before, **after} == read_seen(runs.seen("alone"))
    runs.assert_same(name, "alone")


def test_a_user_error_on_two_processes_is_one_line_and_no_hang(runs):
    command = runs.command("mistake", "0@0", TORCHRUN[:-1], optim={"lr": 0.01, "batch": 3})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 1
    assert done.stderr.count("error: optim.batch: 3 is too small for 2 processes; each needs at least two images") == 1


@pytest.mark.parametrize(("number", "minutes"), [(signal.SIGKILL, 10), (signal.SIGSTOP, 0.05)])
def test_peers_of_a_killed_or_hung_process_stop_with_a_message(runs, number, minutes):
    """Started without torchrun, which would end the peers itself."""
    name = f"lost_{number.name}"
    command = runs.command(name, f"{number.value}@3", timeout_minutes=minutes)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    first, second = (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    )
    _, output = first.communicate(timeout=120)
    second.kill()
    second.communicate(timeout=20)
    assert first.returncode == 1
    expected = f"rank 0: another process failed or did not respond within {minutes:g} minutes"
    assert expected in output
    assert "Traceback" not in output
    assert (runs.folder / name / "plain/checkpoints/step-00000002/state.json").is_file()
