"""Atomic folders: a new one appears whole, an old one is replaced whole, whenever the process is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from recordio_tools import atomic_io
from recordio_tools.atomic_io import atomic_folder
from recordio_tools.errors import UserError


def contents(folder: Path) -> dict[str, str]:
    """Texts of the files by name."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(path: Path, text: str, overwrite: bool | None = False, sources=()) -> None:
    """Writes a folder of one file named by its text."""
    with atomic_folder(path, overwrite, sources) as folder:
        (folder / text).write_text(text)


def killed(function: Callable[[], None]) -> None:
    """Runs a function, which kills its process, in a child process."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_now(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder with files of an earlier run."""
    write(tmp_path / "out", "old")
    return tmp_path / "out"


def test_a_folder_with_files_is_refused_and_an_empty_one_is_used(old, tmp_path):
    for overwrite, remedy in ((None, "remove it"), (False, "--overwrite")):
        with pytest.raises(UserError, match=f"out: exists already and is not empty; .*{remedy}"):
            write(old, "new", overwrite)
    assert contents(old) == {"old": "old"}
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")
    write(tmp_path / "a/b/c", "new", overwrite=True)
    assert contents(tmp_path / "empty") == contents(tmp_path / "a/b/c") == {"new": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwriting_replaces_the_whole_folder(old, tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic_io, "_exchange", lambda *_: False)
    with atomic_folder(old, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert contents(old) == {"old": "old"}
    assert contents(old) == {"new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_keeps_leading_to_its_folder(old, tmp_path):
    (tmp_path / "link").symlink_to(old)
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(old) == {"new": "new"}


@pytest.mark.parametrize("moment", ["writing", "swapping", "swapped", "between two renames"])
def test_a_kill_leaves_the_old_or_the_new_folder_and_the_next_call_cleans_up(old, tmp_path, moment):
    def interrupted() -> None:
        if moment == "writing":
            with atomic_folder(old, overwrite=True) as folder:
                (folder / "half").write_text("half")
                kill_now()
        elif moment == "swapping":
            atomic_io.replace_folder = kill_now
        elif moment == "swapped":
            atomic_io.shutil.rmtree = kill_now
        else:
            atomic_io._exchange = lambda *_: False
            rename = Path.rename
            Path.rename = lambda path, target: rename(path, target) if path == old else kill_now()
        write(old, "half", overwrite=True)

    killed(interrupted)
    hidden = [path for path in tmp_path.iterdir() if path != old]
    assert len(hidden) == 1 + (moment == "between two renames")
    expected = "half" if moment == "swapped" else "old"
    if moment == "between two renames":  # only where the file system cannot swap
        assert not old.exists()
    else:
        assert contents(old) == {expected: expected}
    with pytest.raises(UserError, match="exists already"):
        write(old, "new")
    assert contents(old) == {expected: expected}
    write(old, "new", overwrite=True)
    assert contents(old) == {"new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_swap_cut_short_is_undone(tmp_path):
    previous = tmp_path / ".out.1.0123abcd.previous"
    previous.mkdir()
    (previous / "old").write_text("old")
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out", "new")
    assert contents(tmp_path / "out") == {"old": "old"}


def test_the_temporary_folder_of_a_running_process_and_foreign_ones_stay(tmp_path):
    for name in (".out.1.0123abcd.partial.d", ".other.1.0123abcd.partial", "out.1.0123abcd.partial"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "out") as running:
        write(tmp_path / "out", "new")
        assert running.is_dir()
        (running / "late").touch()
        (tmp_path / "out/new").unlink()
    assert contents(tmp_path / "out") == {"late": ""}
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_another_process_fills_in_the_meantime_stays(tmp_path):
    with pytest.raises(UserError, match="Directory not empty"), atomic_folder(tmp_path / "out", overwrite=False):
        write(tmp_path / "out", "other")
    assert contents(tmp_path / "out") == {"other": "other"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sources_the_working_folder_and_files_are_never_replaced(old, tmp_path, monkeypatch):
    for source in (old, old / "old"):
        with pytest.raises(UserError, match=f"out: holds the source {source}; choose another"):
            write(old, "new", overwrite=True, sources=[source])
    with pytest.raises(UserError, match="out/old: is not a folder"):
        write(old / "old", "new", overwrite=True)
    monkeypatch.chdir(old)
    for path in (Path(), Path(".."), old, Path("/")):
        with pytest.raises(UserError, match="is or contains the working folder"):
            write(path, "new", overwrite=True)
    assert contents(old) == {"old": "old"}
    write(Path("below"), "new")
    assert contents(old / "below") == {"new": "new"}


def test_errors_name_the_folder_or_the_file_that_cannot_be_read(tmp_path):
    def fail(error: Callable[[Path], Exception]) -> None:
        with atomic_folder(tmp_path / "out") as folder:
            raise error(folder)

    cases = {
        f"{tmp_path}/out/a.rec: too long": lambda folder: UserError(f"{folder}/a.rec: too long"),
        f"cannot write {tmp_path}/out: No space": lambda _: OSError(28, "No space"),
        f"cannot write {tmp_path}/out: No entry": lambda folder: OSError(2, "No entry", str(folder / "x")),
        "/photos/1.jpg: No entry": lambda _: OSError(2, "No entry", "/photos/1.jpg"),
    }
    for message, error in cases.items():
        with pytest.raises(UserError) as caught:
            fail(error)
        assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
