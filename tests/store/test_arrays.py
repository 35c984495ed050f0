"""Arrays of other programs: what is read, and one-line errors before any value is.

N rows, D values, P pairs.
"""

import io
import os
import tracemalloc

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.store import arrays as store_arrays
from facelt.store.arrays import read_embedding_array, read_pair_embeddings


def test_an_array_is_read_by_its_name_or_as_the_only_one(tmp_path):
    value_ND = np.random.default_rng(0).normal(size=(5, 3))
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, value_ND)
    assert np.array_equal(read_embedding_array(path), value_ND.astype(np.float32))
    np.savez(path, direct=value_ND.astype(np.float16), other=np.ones(3))
    assert read_embedding_array(path, default="direct").dtype == np.float16
    assert np.array_equal(read_embedding_array(path, "direct"), value_ND.astype(np.float16))
    with pytest.raises(UserError, match=r"rows\.npz: holds the arrays direct, other; name one of them"):
        read_embedding_array(path, default="meta")
    with pytest.raises(UserError, match=r"rows\.npz: holds the arrays direct, other; it needs `meta`"):
        read_embedding_array(path, "meta", default="direct")
    for order in "CF":
        np.save(tmp_path / "rows.npy", np.asarray(value_ND, dtype=">f4", order=order))
        mapped_ND = read_embedding_array(tmp_path / "rows.npy")
        assert isinstance(mapped_ND, np.memmap)
        assert np.array_equal(mapped_ND, value_ND.astype(np.float32))
    with pytest.raises(UserError, match=r"rows\.npy: has 5 rows, the list of its rows has 6"):
        read_embedding_array(tmp_path / "rows.npy", rows=6)


def header_of(shape):
    """Returns the header of a .npy file of float32 values of that shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def test_special_sparse_and_truncated_files_are_refused_before_they_are_read(tmp_path):
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"pipe\.npy: is not a regular file"):
        read_embedding_array(pipe)
    header = header_of((1 << 31, 512))
    path = tmp_path / "rows.npy"
    path.write_bytes(header)
    with pytest.raises(UserError, match="its header says 4,398,046,511,232; copy it again"):
        read_embedding_array(path)
    os.truncate(path, len(header) + (1 << 42))
    with pytest.raises(UserError, match="is a sparse file of 4,398,046,511,232 bytes"):
        read_embedding_array(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_embedding_array(tmp_path)


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "rows.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"rows\.npy: not a \.npy or \.npz file of plain arrays"):
        read_embedding_array(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_an_archive_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "rows.npz", np.ones((100, 8), dtype=np.float32))
    assert len(read_embedding_array(tmp_path / "rows.npz")) == 100
    monkeypatch.setattr(store_arrays.os, "sysconf", lambda name: 50)
    with pytest.raises(UserError, match=r"float32 \[100, 8\], 3,328 bytes, more than the memory of 2,500 bytes"):
        read_embedding_array(tmp_path / "rows.npz")


def test_embeddings_from_elsewhere(tmp_path):
    rows, answers = np.ones((4, 3), dtype=np.float32), np.array([True, False])
    np.save(tmp_path / "rows.npy", rows)
    embeddings, same_P = read_pair_embeddings(tmp_path / "rows.npy")
    assert np.array_equal(embeddings, rows)
    assert same_P is None
    np.savez(tmp_path / "both.npz", embeddings=rows, issame=answers.astype(np.int64))
    assert read_pair_embeddings(tmp_path / "both.npz")[1].tolist() == [True, False]
    assert read_pair_embeddings(tmp_path / "both.npz")[1].dtype == bool


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"embeddings": np.ones((4, 3))}, "holds the arrays embeddings; it needs `issame`"),
        ({"embeddings": np.ones(4), "issame": [True]}, r"floats \[N,D\], not float64 \[4\]"),
        ({"embeddings": np.ones((4, 3), int), "issame": [True]}, r"not int64 \[4, 3\]"),
        ({"embeddings": np.ones((4, 0)), "issame": [True]}, r"not float64 \[4, 0\]"),
        ({"embeddings": np.ones((4, 3)), "issame": [0, 2]}, "`issame` must be booleans .*not int64"),
        ({"embeddings": np.ones((4, 3)), "issame": [[True]]}, "`issame` must be booleans .*not bool"),
        ({"embeddings": np.array([{}]), "issame": [True]}, "`embeddings` holds Python objects"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "both.npz", **arrays)
    with pytest.raises(UserError, match=rf"both\.npz: .*{reason}"):
        read_pair_embeddings(tmp_path / "both.npz")


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.npz: cannot be read \(No such file"):
        read_pair_embeddings(tmp_path / "absent.npz")
    np.savez(tmp_path / "both.npz", embeddings=np.ones((4, 3)), issame=[True, False])
    payload = (tmp_path / "both.npz").read_bytes()
    for damaged in (b"", b"text", payload[:100], payload[:-30]):
        (tmp_path / "both.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"both\.npz: not a \.npy or \.npz file of plain arrays") as caught:
            read_pair_embeddings(tmp_path / "both.npz")
        assert "\n" not in str(caught.value)
