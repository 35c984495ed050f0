"""Hostile and damaged files: one clear line, and memory in proportion to the files instead of the numbers in them."""

import os
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from recordio_tools import format, lists
from recordio_tools.__main__ import main
from recordio_tools.atomic_io import sha256_of
from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.errors import RecordIOError, UserError, sanitize
from recordio_tools.face_set import FaceRecord, read_identities
from recordio_tools.format import MAGIC, MAX_LENGTH, IRHeader, scan_records
from recordio_tools.pack import pack_images
from recordio_tools.reader import RecordReader, read_index
from recordio_tools.verify import verify_record_file
from recordio_tools.writer import RecordWriter

FEW_BYTES = 4_000_000


def run(*arguments) -> int:
    """Runs one command; returns its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code or 0


@pytest.fixture(params=[400_000_000, 9 * 10**18, 2**63 - 1])
def far_key(faces, request) -> int:
    """A key that the last image of the face set has been given."""
    index = faces.with_suffix(".idx")
    index.write_text(index.read_text().replace("8\t", f"{request.param}\t", 1))
    return request.param


def test_memory_does_not_depend_on_the_size_of_a_key(faces, far_key):
    verify_record_file(faces)  # loads OpenCV
    tracemalloc.start()
    with FaceRecord(faces) as images:
        assert images.image_keys.tolist() == [*range(1, 8), far_key]
        assert images.labels.tolist() == [0] * 4 + [1] + [2] * 3
        assert bytes(images.read(far_key).payload)[:2] == b"\xff\xd8"
    assert far_key in {issue.key for issue in verify_record_file(faces).issues}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < FEW_BYTES


def test_memory_does_not_depend_on_the_range_of_record_0(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(1, IRHeader(0, 0.0, 1, 0), b"image")
        writer.write_labels(2, (1, 2))
        writer.write_labels(4, (2, 2))
        writer.write_labels(0, (2, 2**24 - 1))
    tracemalloc.start()
    reasons = {issue.key: issue.reason for issue in verify_record_file(tmp_path / "a.rec", decode_images=False).issues}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < FEW_BYTES
    assert reasons[0] == f"its range of identities 2..{2**24 - 2} is wrong for key 3"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the index is empty"),
        (" \n", "the index is empty"),
        ("1\t0\n9223372036854775808\t44\n", "line 2 has a number above 2^63 - 1: b'9223372036854775808"),
        ("1\t99999999999999999999999\n", "line 1 has a number above"),
        ("9" * 5000 + "\t0\n", "line 1 has a number above"),
    ],
)
def test_an_empty_index_and_numbers_beyond_64_bits_are_refused(faces, capsys, text, problem):
    index = faces.with_suffix(".idx")
    index.write_text(text)
    with pytest.raises(RecordIOError) as caught:
        RecordReader(faces)
    assert str(caught.value).startswith(f"{index}: {problem}")
    assert run("verify", faces) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(caught.value)
    assert out[-1].endswith(" 1 issues")


def test_the_largest_number_is_a_number(tmp_path):
    (tmp_path / "a.idx").write_text("9223372036854775807\t0\n0000000000000000000000007\t44\n")
    assert read_index(tmp_path / "a.idx")[0].tolist() == [2**63 - 1, 7]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t16777215\ta.jpg", r"line 2: the label 16777215 is 1048576 or more"),
        ("0\t9223372036854775809\ta.jpg", "line 2: the label 9223372036854775809 is"),
        ("9223372036854775808\t1\ta.jpg", r"line 2: the index 9223372036854775808 is above 2\^63 - 1"),
        ("9" * 5000 + "\t1\ta.jpg", "line 2: the index 9+ is above"),
        ("1\t1\ta\0.jpg", "line 2: a NUL character"),
        ("1\ta\0.jpg\t1", "line 2: a NUL character"),
    ],
)
def test_a_hostile_list_is_refused_before_anything_is_written(tmp_path, line, reason):
    (tmp_path / "images.lst").write_text(f"0\t0\tb.jpg\n{line}\n")
    with pytest.raises(RecordIOError, match=reason):
        pack_images(tmp_path / "images.lst", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images.lst"]


def test_many_images_may_have_large_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "_FREE_LABELS", 10)
    (tmp_path / "images.lst").write_text("".join(f"{n}\t{label}\ta.jpg\n" for n, label in enumerate((0, 1, 11))))
    assert [image.label for image in lists.read_lst(tmp_path / "images.lst")] == [0, 1, 11]


def test_a_label_of_thousands_of_digits_in_the_table_is_refused(tmp_path):
    (tmp_path / "identities.csv").write_text("label,name\n" + "9" * 5000 + ",Ann\n")
    with pytest.raises(RecordIOError, match="line 2 lacks a field"):
        read_identities(tmp_path / "identities.csv")


KINDS = {
    "named pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
NAMES = ("train.rec", "train.idx", "property", "identities.csv", "images.lst", "1.jpg")
# `pack` reads a folder of identities, and refuses links that lead out.
CASES = [(name, kind) for name in NAMES for kind in KINDS]
CASES = [case for case in CASES if case not in (("images.lst", "folder"), ("1.jpg", "device"))]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_not_a_regular_file_is_never_opened(faces, tmp_path, capsys, kind, name):
    folder = faces.parent
    folder.joinpath("images.lst").write_text("0\t0\t1.jpg\n")
    folder.joinpath(name).unlink(missing_ok=True)
    KINDS[kind](folder / name)
    if name in ("images.lst", "1.jpg"):
        words = ("pack", folder / "images.lst")
    else:
        words = ("sample", folder / "train.rec" if name == "train.rec" and kind != "folder" else folder)
        words += ("--images", 2, "--pack")
    assert run(*words, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"recordio-tools: {folder / name}: ")
    assert f"a {kind}, not a regular file" in error
    assert error.count("\n") == 1
    if name in ("train.idx", "property"):
        reasons = [issue.reason for issue in verify_record_file(faces).issues]
        assert f"{folder / name}: is a {kind}, not a regular file" in reasons
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_regular_files_links_to_them_and_absent_ones(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("absent")
    assert all(regular_file_exists(tmp_path / name) for name in ("file", "link"))
    assert not any(regular_file_exists(tmp_path / name) for name in ("broken", "absent", "file/x", "a\0b"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a named pipe"):
        sha256_of(tmp_path / "pipe")


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.parametrize("command", ["sample", "pack", "unpack"])
def test_a_full_disk_leaves_nothing_and_names_the_folder(faces, root, tmp_path, encode, command):
    """A limit of the process on the size of files stands for the full disk: a write fails in the middle of the file."""
    (tmp_path / "images/0").mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"images/0/{number}.jpg").write_bytes(encode(number))
    with RecordWriter(tmp_path / "faces/large.rec") as writer:
        writer.write(0, IRHeader(0, 0.0, 0, 0), encode(0, (64, 64), ".png"))
    words = {
        "sample": [faces, "--images", "8", "--pack"],
        "pack": [tmp_path / "images"],
        "unpack": [tmp_path / "faces/large.rec"],
    }
    result = subprocess.run(
        [sys.executable, "-m", "recordio_tools", command, *words[command], "--out", "out"],
        preexec_fn=limit_file_size, env={**os.environ, "PYTHONPATH": str(root)}, cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("recordio-tools: cannot write out")
    assert "File too large" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "images"]


def test_names_are_printed_without_control_characters(faces, tmp_path, capsys):
    folder = Path(faces.parent.rename(tmp_path / "\x1b[31mred\u202e\n"))
    assert run("verify", folder) == 0
    (folder / "train.idx").write_text("x")
    assert run("verify", folder) == 1
    assert run("info", folder / "absent\x07") == 1
    (folder / "train.idx").unlink()
    assert run("info", folder) == 0
    assert run("unpack", folder, "--out", folder / "images") == 0
    printed = "".join(capsys.readouterr())
    assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    assert "\ufffd[31mred\ufffd\ufffd" in printed
    assert sanitize("Zoë \x9b") == "Zoë \ufffd"


def test_the_search_reads_in_proportion_to_the_file(monkeypatch):
    """Damaged records, each of which announces more than is left, and nested ones among false entries of an index."""
    count = 5_000
    truncated = struct.pack("<II", MAGIC, MAX_LENGTH) * count
    size = 12 * count + 8
    frames = b"".join(struct.pack("<II", MAGIC, size - 16 - 8 * number) for number in range(count))
    nested = frames + bytes(size - len(frames))
    false = np.arange(8 * count, size - 8, 4)
    searched = []
    search = format._aligned_magic
    monkeypatch.setattr(format, "_aligned_magic", lambda piece: searched.append(len(piece)) or search(piece))
    for data, indexed in ((truncated, []), (nested, memoryview(false))):
        searched.clear()
        assert sum(1 for _ in scan_records(memoryview(data), indexed)) == count
        assert sum(searched) < 20 * len(data)
