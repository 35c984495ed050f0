"""Record reader against files written by MXNet, in several processes, with and without an index."""

import json
import multiprocessing
import os
import pickle
import shutil
import struct

import numpy as np
import pytest

from recordio_tools.errors import RecordIOError
from recordio_tools.format import MAGIC, IRHeader
from recordio_tools.reader import RecordReader
from recordio_tools.writer import RecordWriter


def test_odd_records_equal_what_mxnet_was_given(golden):
    expected = json.loads((golden / "recordio/odd_expected.json").read_text())
    with RecordReader(golden / "recordio/odd.rec") as reader:
        assert reader.keys.tolist() == sorted(map(int, expected))
        for key, record in expected.items():
            header, payload = reader.read(int(key))
            assert bytes(payload).hex() == record["payload_hex"]
            assert np.ravel(header.label).tolist() == np.ravel(record["label"]).tolist()
            assert (header.id, header.id2) == (record["id"], record["id2"])


def test_whole_payloads_are_views_of_the_map(golden):
    with RecordReader(golden / "recordio/train.rec") as reader:
        payload = reader.read(1).payload
        assert payload.obj is reader.view.obj
        assert payload.readonly


def test_without_an_index_the_headers_tell_the_keys(golden, tmp_path):
    copied = shutil.copyfile(golden / "recordio/train.rec", tmp_path / "train.rec")
    with RecordReader(golden / "recordio/train.rec") as indexed, RecordReader(copied) as scanned:
        np.testing.assert_array_equal(scanned.keys, indexed.keys)
        np.testing.assert_array_equal(scanned.offsets, indexed.offsets)


def test_without_an_index_repeated_ids_are_numbered(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in (7, 8, 9):
            writer.write(key, IRHeader(0, 0.0, 5, 0), b"x" * key)
    (tmp_path / "a.idx").unlink()
    with RecordReader(tmp_path / "a.rec") as reader:
        assert reader.keys.tolist() == [0, 1, 2]
        assert bytes(reader.read(2).payload) == b"x" * 9


def test_keys_far_apart_are_found_too(tmp_path):
    keys = [3, 10**12, 5, 2**62]
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in keys:
            writer.write(key, IRHeader(0, 1.0, key, 0), str(key).encode())
    with RecordReader(tmp_path / "a.rec") as reader:
        assert reader.keys.tolist() == keys
        assert [bytes(reader.read(key).payload) for key in keys] == [str(key).encode() for key in keys]
        assert 10**12 in reader
        assert 4 not in reader
        with pytest.raises(RecordIOError, match="no record has key 4"):
            reader.read(4)


@pytest.mark.parametrize("key", [-1, 12, 10**9, 2**70])
def test_unknown_keys_are_refused(faces, key):
    with RecordReader(faces) as reader:
        assert key not in reader
        with pytest.raises(RecordIOError, match=f"no record has key {key}"):
            reader.read(key)


def test_numpy_keys_are_keys(faces):
    with RecordReader(faces) as reader:
        assert reader.read(np.int64(3)).header.id == 3


def _read_all(reader: RecordReader, queue) -> None:
    queue.put([bytes(reader.read(key).payload) for key in reader.keys.tolist()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(golden, method):
    context = multiprocessing.get_context(method)
    with RecordReader(golden / "recordio/odd.rec") as reader:
        queue = context.Queue()
        worker = context.Process(target=_read_all, args=(reader, queue))
        worker.start()
        result = queue.get(timeout=30)
        worker.join()
        assert result == [bytes(reader.read(key).payload) for key in reader.keys.tolist()]


def test_an_unpickled_reader_maps_the_file_and_detects_a_change(faces):
    with RecordReader(faces) as reader:
        pickled = pickle.dumps(reader)
        payload = bytes(reader.read(2).payload)
    with pickle.loads(pickled) as copy:
        assert bytes(copy.read(2).payload) == payload
    os.utime(faces, ns=(1, 1))
    with pytest.raises(RecordIOError, match="has changed"):
        pickle.loads(pickled)


def test_closing_keeps_held_payloads_valid(faces):
    reader = RecordReader(faces)
    payload = reader.read(1).payload
    before = bytes(payload)
    reader.close()
    reader.close()
    assert bytes(payload) == before
    with pytest.raises(RecordIOError, match="closed"):
        reader.read(1)


def test_missing_and_empty_files_are_refused(tmp_path, faces):
    with pytest.raises(RecordIOError, match=r"absent\.rec: cannot be read"):
        RecordReader(tmp_path / "absent.rec")
    (tmp_path / "empty.rec").touch()
    with pytest.raises(RecordIOError, match="is empty"):
        RecordReader(tmp_path / "empty.rec")
    with pytest.raises(RecordIOError, match="no such index"):
        RecordReader(faces, tmp_path / "absent.idx")
    with pytest.raises(RecordIOError, match="label_width must be 4 or 8"):
        RecordReader(faces, label_width=2)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("1\t0\n2\tx\n", "line 2 is not a key, a tab and an offset"),
        ("1 0\n", "line 1 is not"),
        ("1\n0\t2\t3\n", "line 1 is not"),
        ("1\t0\n\n", "line 2 is not"),
        ("1\t-4\n", "line 1 is not"),
        ("1\t0\n1\t0\n", "key 1 is repeated"),
        ("1\t2\n", "key 1 points at offset 2"),
        ("1\t99999999999\n", "key 1 points at offset 99999999999"),
        ("1\t0\r2\t44\n", "its lines end in carriage returns"),
    ],
)
def test_a_wrong_index_is_refused(faces, index, reason):
    faces.with_suffix(".idx").write_text(index)
    with pytest.raises(RecordIOError, match=reason):
        RecordReader(faces)


def test_damaged_records_are_reported_with_their_key(faces):
    with RecordReader(faces) as reader:
        offset = reader.offset(3)
    data = bytearray(faces.read_bytes())
    data[offset] ^= 1
    faces.write_bytes(data)
    with RecordReader(faces) as reader:
        assert reader.read(2).header.id == 2
        with pytest.raises(RecordIOError, match="record 3 is damaged: no magic word"):
            reader.read(3)


def test_a_truncated_file_is_reported(faces):
    last = int(faces.with_suffix(".idx").read_text().split()[-1])
    faces.write_bytes(faces.read_bytes()[: last + 12])
    with RecordReader(faces, label_width=4) as reader, pytest.raises(RecordIOError, match="record 0 is damaged: trunc"):
        reader.read(0)
    faces.with_suffix(".idx").unlink()
    with pytest.raises(RecordIOError, match="record 11: truncated"):
        RecordReader(faces)


def test_float64_labels_of_old_files_are_read(tmp_path):
    def frame(labels: list[float], id: int, payload: bytes = b"") -> bytes:
        body = struct.pack("<IfQQ", len(labels), 0.0, id, 0) + struct.pack(f"<{len(labels)}d", *labels) + payload
        return struct.pack("<II", MAGIC, len(body)) + body + bytes(-len(body) % 4)

    records = [frame([0.0, 7.5], 1, b"abc"), frame([1.0, 2.5], 2, b"defg"), frame([3.0, 5.0], 0)]
    (tmp_path / "old.rec").write_bytes(b"".join(records))
    with RecordReader(tmp_path / "old.rec") as reader:
        assert reader.label_width == 8
        header, payload = reader.read(2)
        assert header.label.tolist() == [1.0, 2.5]
        assert bytes(payload) == b"defg"
