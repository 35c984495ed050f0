"""Locks of output folders: one holder, released with the block and by the death of the holder."""

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from facelt.errors import UserError
from facelt.utils.folder_lock import lock_folder, require_writable

HOLDER = """
import os, sys, time
from pathlib import Path
from facelt.utils.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, root):
    """A process that holds the lock of the folder `out`, with a forked child; (process, id of the child)."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        child = int(process.stdout.readline())
        yield process, child
        for number in (process.pid, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)


def test_a_second_process_is_refused_with_the_first_ones_id_until_that_is_killed(holder, tmp_path):
    process, child = holder
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out", "link", "../" + tmp_path.name + "/out"):
        with pytest.raises(UserError) as refused, lock_folder(tmp_path / name):
            pass
        expected = f"process {process.pid} on {socket.gethostname()} is writing to it; wait"
        assert str(refused.value).startswith(f"{tmp_path / name}: {expected}")
    with lock_folder(tmp_path / "other"):
        pass
    process.kill()
    process.wait()
    os.kill(child, 0)  # the child lives on and holds nothing
    with lock_folder(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_folder_stays_absent_and_new_parents_are_removed_unless_they_are_used(tmp_path):
    folder = tmp_path / "a" / "b" / "out"
    with lock_folder(folder):
        assert [path.name for path in folder.parent.iterdir()] == [".out.lock"]
        with pytest.raises(UserError, match=rf"process {os.getpid()} on "), lock_folder(folder):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock_folder(folder):
        folder.mkdir()
    assert list(folder.parent.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_only_the_first_process_of_a_launch_takes_the_lock(tmp_path, monkeypatch):
    with lock_folder(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with lock_folder(tmp_path / "out"):
            pass
        assert (tmp_path / ".out.lock").exists()


def test_without_locks_of_the_file_system_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {tmp_path}/.out.lock: cannot be locked (No locks available); ")
    assert error.count("\n") == 1


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(descriptor, operation):
        if not calls:
            (tmp_path / ".out.lock").unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_folder(tmp_path / "out"):
        assert len(calls) == 2
        assert (tmp_path / ".out.lock").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=f"cannot write {folder}: {tmp_path / 'file'} is a file"):
            require_writable(folder)
    require_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with (
        pytest.raises(UserError, match=f"cannot write {tmp_path}/a/b: no permission to write in {tmp_path}; "),
        lock_folder(tmp_path / "a" / "b"),
    ):
        pass
