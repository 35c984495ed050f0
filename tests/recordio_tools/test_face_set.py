"""Face sets: labels and image counts, for every record layout in use."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest

from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import FaceRecord, read_property
from recordio_tools.format import IRHeader
from recordio_tools.reader import RecordReader
from recordio_tools.writer import RecordWriter


def write_images(path, labels, first_key=0, extra=()):
    """Plain records, as im2rec or RecBuilder leave them: no record 0, no identity records."""
    with RecordWriter(path) as writer:
        for key, label in enumerate(labels, start=first_key):
            writer.write(key, IRHeader(0, label, key, 0), b"image %d" % key)
        for key, bounds in extra:
            writer.write_labels(key, bounds)
    return path


def test_the_golden_face_set(golden):
    expected = json.loads((golden / "recordio/expected.json").read_text())
    with FaceRecord(golden / "recordio/train.rec") as faces:
        pairs = zip(faces.image_keys.tolist(), faces.labels.tolist(), strict=True)
        assert [[key, label, len(faces.read(key).payload)] for key, label in pairs] == expected["images"]
        ranges = [faces.read(key).header.label.tolist() for key in faces.identity_keys.tolist()]
        assert ranges == expected["identity_ranges"]
        assert faces.read(0).header.label.tolist() == expected["header0"]
        assert (faces.label_source, faces.image_size, faces.num_identities) == ("ranges", (112, 112), 5)


def test_the_real_face_set_agrees_with_its_table_and_its_headers(real_data):
    folder = real_data / "faces/train"
    with (folder / "identities.csv").open() as stream:
        images = [int(row["images"]) for row in csv.DictReader(stream)]
    with FaceRecord(folder / "train.rec") as faces:
        assert faces.counts.tolist() == images
        assert faces.label_source == "ranges"
        keys = faces.image_keys[::97].tolist()
        assert [int(faces.read(key).header.label) for key in keys] == faces.labels[::97].tolist()


def test_plain_records_start_at_key_0(tmp_path):
    with FaceRecord(write_images(tmp_path / "a.rec", [2.0, 0.0, 2.0])) as faces:
        assert faces.image_keys.tolist() == [0, 1, 2]
        assert faces.labels.tolist() == [2, 0, 2]
        assert faces.counts.tolist() == [1, 0, 2]
        assert (faces.label_source, faces.image_size) == ("headers", None)


def test_vector_labels_count_by_their_first(tmp_path):
    with FaceRecord(write_images(tmp_path / "a.rec", [[1.0, 9.5], [0.0, 3.0], [1.0]])) as faces:
        assert faces.labels.tolist() == [1, 0, 1]


def test_labels_need_not_be_the_place_of_the_identity_record(tmp_path):
    path = write_images(tmp_path / "a.rec", [7.0, 7.0, 3.0], 1, [(4, (1, 3)), (5, (3, 4)), (0, (4, 6))])
    with FaceRecord(path) as faces:
        assert faces.label_source == "ranges"
        assert faces.labels.tolist() == [7, 7, 3]


@pytest.mark.parametrize(
    "bounds",
    [
        [(1, 3), (4, 5)],  # a gap
        [(1, 4), (3, 5)],  # an overlap
        [(1, 2), (2, 5)],  # two labels in one range
        [(1, 3), (3, float(2**24 + 2))],  # beyond what float32 counts exactly
        [(1, 3), (float("nan"), 5)],
    ],
)
def test_ranges_that_are_not_exact_are_not_used(tmp_path, bounds):
    labels = [0.0, 0.0, 1.0, 1.0]
    extra = [(5, bounds[0]), (6, bounds[1]), (0, (5, 7))]
    with FaceRecord(write_images(tmp_path / "a.rec", labels, 1, extra)) as faces:
        assert faces.label_source == "headers"
        assert faces.labels.tolist() == labels


def test_the_index_decides_where_record_0_is_rounded(tmp_path):
    """Record 0 of a file with more than 2^24 images is rounded; here it is far off."""
    extra = [(3, (1, 2)), (4, (2, 3)), (0, (2.0**24, 2.0**24 + 2))]
    with FaceRecord(write_images(tmp_path / "a.rec", [0.0, 1.0], 1, extra)) as faces:
        assert faces.image_keys.tolist() == [1, 2]
        assert faces.identity_keys.tolist() == [3, 4]


def test_record_0_may_come_first(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write_labels(0, (3, 4))
        for key in (1, 2):
            writer.write(key, IRHeader(0, 0.0, key, 0), b"image")
        writer.write_labels(3, (1, 3))
    with FaceRecord(tmp_path / "a.rec") as faces:
        assert faces.image_keys.tolist() == [1, 2]
        assert faces.counts.tolist() == [2]


def test_a_header_that_holds_the_magic_word_is_read(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, IRHeader(0, 3.0, 0xCED7230A, 1), b"split inside its header")
        writer.write(1, IRHeader(0, 4.0, 1, 1), b"plain")
    with FaceRecord(tmp_path / "a.rec") as faces:
        assert faces.labels.tolist() == [3, 4]
        assert bytes(faces.read(0).payload) == b"split inside its header"
    (tmp_path / "a.idx").unlink()
    with RecordReader(tmp_path / "a.rec") as reader:
        assert reader.keys.tolist() == [0xCED7230A, 1]


def test_a_label_outside_property_is_refused(tmp_path):
    path = write_images(tmp_path / "a.rec", [0.0, 3.0, 1.0])
    (tmp_path / "property").write_text("3,16,16\n")
    with pytest.raises(RecordIOError, match=r"record 1 has label 3, but .*property declares 3 identities"):
        FaceRecord(path)


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 1e15])
def test_a_label_that_is_not_an_identity_is_refused(tmp_path, label):
    with pytest.raises(RecordIOError, match="record 1 has label"):
        FaceRecord(write_images(tmp_path / "a.rec", [0.0, label]))


@pytest.mark.parametrize("text", ["", "3,112", "a,b,c", "3,0,112", "-1,112,112", "99999999999,112,112"])
def test_a_wrong_property_is_refused(tmp_path, text):
    (tmp_path / "property").write_text(text)
    with pytest.raises(RecordIOError, match="property"):
        read_property(tmp_path / "property")


def test_a_second_line_of_property_is_no_matter(tmp_path):
    (tmp_path / "property").write_text("3,112,96\n77\n")
    assert read_property(tmp_path / "property") == (3, 112, 96)


def test_a_damaged_header_is_reported(faces):
    with FaceRecord(faces) as known:
        offset = known.reader.offset(int(known.image_keys[-1]))
    data = bytearray(faces.read_bytes())
    data[offset] ^= 1
    faces.write_bytes(data)
    with pytest.raises(RecordIOError, match=f"no magic word at offset {offset}"):
        FaceRecord(faces)


def test_it_can_be_pickled(golden, tmp_path):
    for name in ("train.rec", "train.idx", "property"):
        shutil.copyfile(golden / "recordio" / name, tmp_path / name)
    with FaceRecord(tmp_path / "train.rec") as faces, pickle.loads(pickle.dumps(faces)) as copy:
        np.testing.assert_array_equal(copy.labels, faces.labels)
        assert bytes(copy.read(5).payload) == bytes(faces.read(5).payload)
