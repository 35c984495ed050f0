"""Caches of labels and scanned indices: used while they match, replaced when they do not, reported by verify."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest

from recordio_tools import reader
from recordio_tools.__main__ import main
from recordio_tools.cache import cache_path, file_stamp, load_or_compute
from recordio_tools.face_set import FaceRecord
from recordio_tools.format import IRHeader
from recordio_tools.reader import RecordReader
from recordio_tools.verify import verify_record_file
from recordio_tools.writer import RecordWriter

LABELS = [0, 2, 1, 1]


@pytest.fixture
def plain(tmp_path):
    """Records without identity records, whose labels are read from the headers."""
    return write_images(tmp_path / "set/a.rec", LABELS)


def write_images(path, labels):
    with RecordWriter(path) as writer:
        for key, label in enumerate(labels):
            writer.write(key, IRHeader(0, float(label), key, 0), b"image %d" % key)
    return path


def labels_of(path, **options) -> list[int]:
    with FaceRecord(path, **options) as faces:
        return faces.labels.tolist()


def findings(path) -> list[str]:
    return [issue.reason for issue in verify_record_file(path, decode_images=False).issues]


def change(cache, row: int, column: int) -> None:
    table = np.load(cache)
    table[row, column] += 1
    np.save(cache, table)


def test_a_cache_that_matches_is_used(plain, monkeypatch):
    assert labels_of(plain) == LABELS
    assert findings(plain) == []
    monkeypatch.setattr(FaceRecord, "_labels_from_headers", None)
    assert labels_of(plain) == LABELS


@pytest.mark.parametrize(("row", "column"), [(2, 1), (1, 0), (0, 6), (0, 9)])
def test_a_changed_value_is_never_used_and_verify_reports_it(plain, row, column):
    labels_of(plain)
    cache = cache_path(plain, "labels")
    intact = cache.read_bytes()
    change(cache, row, column)
    assert findings(plain) == [f"{cache}: its values were changed after it was made; delete it"]
    assert labels_of(plain) == LABELS
    assert cache.read_bytes() == intact  # it was replaced
    assert findings(plain) == []


def test_a_cache_of_another_file_is_replaced_and_reported(plain):
    labels_of(plain)
    cache = cache_path(plain, "labels")
    old = cache.read_bytes()
    write_images(plain, [0, 1])
    assert findings(plain) == [f"{cache}: was made from another version of the record or its index; delete it"]
    assert labels_of(plain) == [0, 1]
    cache.write_bytes(old)
    os.utime(plain, ns=(1, 1))
    assert labels_of(plain) == [0, 1]


def test_verify_compares_a_forged_cache_with_the_records(plain):
    cache = cache_path(plain, "labels")
    forged = np.array([[0, 1, 2, 3], [0, 2, 1, 7]])
    load_or_compute(cache, file_stamp(plain, plain.with_suffix(".idx")), 2, lambda: forged)
    (issue,) = verify_record_file(plain, decode_images=False).issues
    assert (issue.key, issue.reason) == (3, "its label is 1, but 7 in the label cache; delete the cache")


def save(array: np.ndarray):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"no array"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path.open("wb"), np.zeros(3)),
        save(np.zeros((3, 40))),
        save(np.zeros(40, np.int64)),
        save(np.zeros((4, 40), np.int64)),
        save(np.zeros((3, 2), np.int64)),
        save(np.full((3, 40), 10**15)),
        save(np.array([object()], object)),
    ],
)
def test_what_is_no_cache_is_replaced_and_reported(plain, make):
    cache = cache_path(plain, "labels")
    make(cache)
    assert findings(plain) == [f"{cache}: is not a cache of record values; delete it"]
    assert labels_of(plain) == LABELS
    assert findings(plain) == []


def test_a_header_that_claims_gigabytes_is_refused_before_they_are_allocated(plain):
    cache = cache_path(plain, "labels")
    cache.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
    tracemalloc.start()
    try:
        assert findings(plain) == [f"{cache}: is not a cache of record values; delete it"]
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


def test_a_scanned_index_is_cached_too(plain, monkeypatch):
    plain.with_suffix(".idx").unlink()
    cache = cache_path(plain, "index")
    RecordReader(plain).close()
    with monkeypatch.context() as patch:
        patch.setattr(reader, "scan_index", None)
        RecordReader(plain).close()
    change(cache, 1, 0)
    assert findings(plain) == [f"{cache}: its values were changed after it was made; delete it"]
    for stale in (lambda: change(cache, 2, 0), lambda: os.utime(plain, ns=(1, 1)), lambda: cache.write_bytes(b"x")):
        stale()
        with RecordReader(plain) as records:
            assert records.keys.tolist() == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_keeps_no_cache(plain):
    plain.parent.chmod(0o555)
    try:
        assert labels_of(plain) == LABELS
        assert sorted(file.name for file in plain.parent.iterdir()) == ["a.idx", "a.rec"]
    finally:
        plain.parent.chmod(0o755)


def test_caches_can_be_in_a_common_folder(plain, tmp_path, monkeypatch, capsys):
    other = write_images(tmp_path / "other/a.rec", [1, 0])
    monkeypatch.setenv("FACELT_CACHE", str(tmp_path / "common"))
    for path, labels in ((plain, LABELS), (other, [1, 0])) * 2:
        assert labels_of(path) == labels
        assert findings(path) == []
    assert len(list((tmp_path / "common").iterdir())) == 2
    # An argument goes before the variable; the same file has the same cache by any path.
    for option in ("named", "named"):
        with pytest.raises(SystemExit):
            main(["info", str(plain.parent / "../set/a.rec"), "--cache", str(tmp_path / option), "--json"])
    assert json.loads("[" + capsys.readouterr().out.replace("}\n{", "},{") + "]")[1]["labels_from"] == "headers"
    assert len(list((tmp_path / "named").iterdir())) == 1
    assert {path.name for path in plain.parent.iterdir()} == {"a.rec", "a.idx"}
    change(cache_path(plain, "labels", tmp_path / "named"), 2, 1)
    with pytest.raises(SystemExit) as exit:
        main(["verify", str(plain), "--cache", str(tmp_path / "named"), "--no-decode"])
    assert exit.value.code == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'named'}/a.rec.")


def test_a_common_folder_that_cannot_be_made_is_no_error(plain, tmp_path):
    (tmp_path / "file").touch()
    assert labels_of(plain, cache=tmp_path / "file/below") == LABELS


def test_a_copy_with_its_times_keeps_the_cache(plain, tmp_path, monkeypatch):
    labels_of(plain)
    shutil.copytree(plain.parent, tmp_path / "copy")
    monkeypatch.setattr(FaceRecord, "_labels_from_headers", None)
    assert labels_of(tmp_path / "copy/a.rec") == LABELS
