"""Atomic writes: a file appears complete or not at all."""

import hashlib
import os

import pytest

from recordio_tools.atomic_io import atomic_replace, sha256_of, write_text
from recordio_tools.errors import UserError


def test_text_is_written_as_it_is_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "a/b.txt"
    write_text(path, "one\r\ntwo\né")
    assert path.read_bytes() == "one\r\ntwo\né".encode()
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_refusal_leaves_the_old_file_alone_and_is_one_line(tmp_path, monkeypatch, function):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(UserError) as caught:
        write_text(path, "new", "choose another folder")
    assert str(caught.value) == f"cannot write {path}: No space left on device; choose another folder"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_any_error_of_the_writer_leaves_nothing(tmp_path):
    def fail() -> None:
        with atomic_replace(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_hash_of_an_absent_file_is_one_line(tmp_path):
    (tmp_path / "there").write_bytes(b"abc")
    assert sha256_of(tmp_path / "there") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match=r"absent: cannot be read \(No such file or directory\)"):
        sha256_of(tmp_path / "absent")
