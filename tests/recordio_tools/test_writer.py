"""Record writers: output equals MXNet's byte for byte; no partial files."""

import json

import numpy as np
import pytest

from recordio_tools.errors import RecordIOError, UserError
from recordio_tools.face_set import FaceRecord
from recordio_tools.format import IRHeader
from recordio_tools.reader import RecordReader
from recordio_tools.writer import FaceRecordWriter, RecordWriter


def same_files(first, second, suffixes=(".rec", ".idx")) -> bool:
    return all(first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes() for suffix in suffixes)


def test_odd_records_are_written_as_mxnet_writes_them(golden, tmp_path):
    expected = json.loads((golden / "recordio/odd_expected.json").read_text())
    with RecordWriter(tmp_path / "odd.rec") as writer:
        for key, record in expected.items():
            header = IRHeader(0, record["label"], record["id"], record["id2"])
            writer.write(int(key), header, bytes.fromhex(record["payload_hex"]))
    assert same_files(tmp_path / "odd.rec", golden / "recordio/odd.rec")


def test_a_face_set_is_written_as_mxnet_writes_it(golden, tmp_path):
    source = golden / "recordio/train.rec"
    with FaceRecord(source) as faces, FaceRecordWriter(tmp_path / "train.rec", (112, 112)) as writer:
        pairs = zip(faces.image_keys.tolist(), faces.labels.tolist(), strict=True)
        writer.write_all((label, faces.read(key).payload) for key, label in pairs)
    assert same_files(tmp_path / "train.rec", source)
    assert (tmp_path / "property").read_bytes() == (golden / "recordio/property").read_bytes()


def test_an_error_leaves_what_was_there(faces, encode):
    before = {file.name: file.read_bytes() for file in faces.parent.iterdir()}

    def images():
        yield 0, encode(1)
        raise RuntimeError

    with pytest.raises(RuntimeError), FaceRecordWriter(faces, (16, 16)) as writer:
        writer.write_all(images())
    assert {file.name: file.read_bytes() for file in faces.parent.iterdir()} == before


def test_writing_again_replaces_the_index_too(faces, encode):
    with FaceRecordWriter(faces, (16, 16)) as writer:
        writer.write(0, encode(1))
    with RecordReader(faces) as reader:
        assert reader.keys.tolist() == [1, 2, 0]


@pytest.mark.parametrize("num_identities", [None, 5])
def test_identities_without_images_are_kept(tmp_path, encode, num_identities):
    with FaceRecordWriter(tmp_path / "a.rec", (16, 16), num_identities) as writer:
        assert [writer.write(label, encode(label)) for label in (1, 1, 3)] == [1, 2, 3]
    with FaceRecord(tmp_path / "a.rec") as faces:
        expected = [0, 2, 0, 1] if num_identities is None else [0, 2, 0, 1, 0]
        assert faces.counts.tolist() == expected
        assert faces.num_identities == len(faces.identity_keys) == len(expected)
        assert faces.read(int(faces.identity_keys[1])).header.label.tolist() == [1, 3]
        assert faces.read(0).header.label.tolist() == [4, 4 + len(expected)]


def test_wrong_use_is_refused(tmp_path):
    header = IRHeader(0, 0.0, 1, 0)
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(1, header, b"")
        for key, reason in ((1, "written twice"), (-1, "below 0")):
            with pytest.raises(RecordIOError, match=reason):
                writer.write(key, header, b"")
    with FaceRecordWriter(tmp_path / "b.rec", (16, 16), 3) as faces:
        faces.write(1, b"x")
        for label, reason in ((0, "group by label"), (3, r"outside 0\.\.2"), (-1, "outside")):
            with pytest.raises(RecordIOError, match=reason):
                faces.write(label, b"x")
    with pytest.raises(RecordIOError, match=r"must not end in \.idx"):
        RecordWriter(tmp_path / "a.idx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        RecordWriter(tmp_path / "file" / "a.rec")


def test_vector_labels_of_any_kind_become_float32(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, IRHeader(0, np.array([1, 2], np.int64), 0, 0), b"x")
        writer.write(1, IRHeader(9, (0.5,), 0, 0), memoryview(b"y"))
    with RecordReader(tmp_path / "a.rec") as reader:
        assert reader.read(0).header.label.dtype == np.float32
        assert reader.read(1).header.flag == 1
