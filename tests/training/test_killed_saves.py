"""SIGKILL before every file-system operation of a save: the old or the new checkpoint loads."""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from facelt.training.checkpoint import Checkpoints

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"method.weight": torch.full((2, 3), value)}


def save(checkpoints: Checkpoints, step: int, value: int) -> None:
    checkpoints.save(step, tensors(value), {}, {"value": value})
    checkpoints.commit()


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """Steps 10 and 20, whose values are 1 and 2."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("killed") / "checkpoints", keep=2)
    for step, value in ((10, 1), (20, 2)):
        save(checkpoints, step, value)
    return checkpoints.folder


def changes_files(event: str, arguments: tuple) -> bool:
    """Returns whether an audit event is about to change the file system."""
    if event == "open":
        _, mode, flags = arguments
        return bool(flags & WRITES) or (isinstance(mode, str) and mode[:1] in "wax")
    return event in CHANGES


def save_killed(folder: Path, number: int, step: int, in_background: bool) -> bool:
    """Saves in a child process that dies before operation `number`; returns False if it completes first."""
    child = os.fork()
    if not child:
        try:
            touches = count()

            def die(event: str, arguments: tuple) -> None:
                if changes_files(event, arguments) and next(touches) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoints = Checkpoints(folder, keep=2, in_background=in_background)
            sys.addaudithook(die)
            save(checkpoints, step, 3)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) != 0


@pytest.mark.parametrize("in_background", [False, True], ids=["waiting", "background"])
# The checkpoint of a step may be there already: the end of an epoch whose validation was interrupted.
@pytest.mark.parametrize("step", [30, 20])
def test_a_checkpoint_loads_after_a_kill_at_any_operation(before, tmp_path, step, in_background):
    values = []
    for number in count():
        folder = shutil.copytree(before, tmp_path / f"{number}")
        if not save_killed(folder, number, step, in_background):
            break
        checkpoints, warnings = Checkpoints(folder, keep=2), []
        facts, loaded = checkpoints.restore(lambda facts: tensors(0), {}, warnings.append)
        values.append(facts["value"])
        assert torch.equal(loaded["method.weight"], tensors(facts["value"])["method.weight"])
        # Nothing half-written is taken for a checkpoint, nor left behind, and the next save is as any other.
        assert not warnings
        assert not list(folder.glob(".*"))
        save(checkpoints, 40, 4)
        assert len(checkpoints.paths()) == 2
    # The folder, two files, their names and the old checkpoint, which goes last.
    assert len(values) >= 8
    # Where a step is written again there is one moment between the old name and the new: then the one before loads.
    order = [2, 3] if step == 30 else [2, 1, 3]
    assert values == sorted(values, key=order.index)
    assert set(values) == set(order)
    assert values.count(1) <= 1
