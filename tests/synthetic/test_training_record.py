"""Synthetic training record, read back by code that knows only the published layout."""

import csv
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from facelt.errors import UserError
from facelt.synthetic import render
from facelt.synthetic.datasets import head_heavy_counts, write_training_record
from facelt.synthetic.identity import DEMO, draw_identity, draw_nuisance
from facelt.synthetic.render import encode_face

COUNTS = [4, 1, 2, 90]


def plain_records(folder: Path) -> dict[int, tuple[int, float, bytes]]:
    """key -> (flag, label, rest), by struct alone."""
    data, records = (folder / "train.rec").read_bytes(), {}
    for line in (folder / "train.idx").read_text().splitlines():
        key, offset = map(int, line.split("\t"))
        magic, length, flag, label = struct.unpack_from("<IIIf", data, offset)
        assert magic == 0xCED7230A
        records[key] = flag, label, data[offset + 32 : offset + 8 + length]
    return records


def test_record_holds_each_identity_in_insightface_layout(tmp_path):
    made = write_training_record(
        tmp_path / "set", identities=4, images_per_identity=COUNTS, seed=2, first_identity=10, workers=1, size=32
    )
    assert (made.images, made.identities, made.next_identity) == (97, 4, 14)
    assert made.record == tmp_path / "set" / "train.rec"
    records = plain_records(tmp_path / "set")
    assert sorted(records) == list(range(102))
    assert struct.unpack("<2f", records[0][2]) == (98.0, 102.0)
    labels = [int(records[key][1]) for key in range(1, 98)]
    assert labels == [0] * 4 + [1] + [2] * 2 + [3] * 90
    assert [struct.unpack("<2f", records[key][2]) for key in range(98, 102)] == [(1, 5), (5, 6), (6, 8), (8, 98)]
    assert (tmp_path / "set" / "property").read_text().strip() == "4,32,32"
    expected = encode_face(draw_identity(2, 12), draw_nuisance(2, 12, 1, DEMO), 32)
    assert records[7][2][: len(expected)] == expected
    assert cv2.imdecode(np.frombuffer(records[97][2], np.uint8), cv2.IMREAD_COLOR).shape == (32, 32, 3)


def test_identities_table_names_label_gender_and_count(tmp_path):
    write_training_record(
        tmp_path, identities=4, images_per_identity=[2, 1, 1, 3], seed=2, first_identity=10, workers=1
    )
    rows = list(csv.DictReader((tmp_path / "identities.csv").open()))
    assert list(rows[0]) == ["label", "name", "gender", "images"]
    assert [row["name"] for row in rows] == [f"synthetic_{index:05d}" for index in range(10, 14)]
    assert [int(row["images"]) for row in rows] == [2, 1, 1, 3]
    assert [row["gender"] for row in rows] == [draw_identity(2, index).gender for index in range(10, 14)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identities.csv", "property", "train.idx", "train.rec"]


def test_number_of_workers_changes_no_byte(tmp_path):
    for workers in (1, 2):
        write_training_record(
            tmp_path / str(workers), identities=4, images_per_identity=COUNTS, seed=0, workers=workers, size=32
        )
    for name in ("train.rec", "train.idx", "identities.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_counts_are_head_heavy_and_seeded():
    counts = head_heavy_counts(300, mean=20.0, largest=120, seed=0)
    assert counts.mean() == pytest.approx(20.0, rel=0.02)
    assert counts.min() == 1
    assert 110 < counts.max() <= 120
    ranked = np.sort(counts)[::-1]
    assert ranked[:60].sum() > 0.6 * counts.sum()
    assert np.median(counts) < 6
    assert np.array_equal(counts, head_heavy_counts(300, mean=20.0, largest=120, seed=0))
    other = head_heavy_counts(300, mean=20.0, largest=120, seed=1)
    assert not np.array_equal(counts, other)
    assert np.array_equal(ranked, np.sort(other)[::-1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"identities": 0}, "identities"),
        ({"images_per_identity": [1, 2]}, "has 2 counts for 3"),
        ({"images_per_identity": [1, 0, 2]}, "images_per_identity"),
        ({"images_per_identity": 200.0}, "mean"),
        ({"seed": -1}, "seed"),
        ({"first_identity": -1}, "first_identity"),
        ({"workers": 0}, "workers"),
        ({"size": 3}, "size"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, change, named):
    good = {"identities": 3, "images_per_identity": [1, 1, 1], "seed": 0, "workers": 1}
    with pytest.raises(UserError, match=named) as caught:
        write_training_record(tmp_path / "set", **(good | change))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused_and_kept(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_training_record(tmp_path / "set", identities=1, images_per_identity=[1], seed=0, workers=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "mine.txt"]


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    real, calls = render.encode_face, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(render, "encode_face", failing)
    with pytest.raises(KeyboardInterrupt):
        write_training_record(tmp_path / "set", identities=1, images_per_identity=[5], seed=0, workers=1)
    assert list(tmp_path.iterdir()) == []
