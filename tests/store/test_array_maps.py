"""Memory maps of .npy files: equal to NumPy's, and every other file is refused before memory is taken."""

import os
import re
import struct
import tracemalloc

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.store.arrays import map_npy

VALUE_ND = np.arange(12, dtype=np.float32).reshape(4, 3)
DTYPES = ("float16", "float32")


def refusal(path, shape=(4, 3)) -> str:
    tracemalloc.start()
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: ") as caught:
        map_npy(path, shape, DTYPES, "meta.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("value_ND", [VALUE_ND, VALUE_ND.astype(np.float16), VALUE_ND[:0], VALUE_ND[:, 0]])
def test_the_values_are_those_of_numpy(tmp_path, value_ND):
    np.save(tmp_path / "x.npy", value_ND)
    mapped_ND = map_npy(tmp_path / "x.npy", value_ND.shape, DTYPES, "meta.json")
    assert mapped_ND.dtype == value_ND.dtype
    assert np.array_equal(mapped_ND, np.load(tmp_path / "x.npy"))
    assert not mapped_ND.size or not mapped_ND.flags.writeable


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (VALUE_ND.astype(np.float64), "holds float64 [4, 3], meta.json says float16 or float32 [4, 3]"),
        (VALUE_ND.astype(">f4"), "holds big-endian float32 [4, 3], meta.json says"),
        (VALUE_ND.T.copy(), "holds float32 [3, 4], meta.json says"),
        (VALUE_ND.astype(np.complex64), "holds complex64 [4, 3]"),
        (np.array([[None] * 3] * 4), "holds object [4, 3]"),
        (np.zeros((4, 3), [("a", "f4")]), "holds void32 [4, 3]"),
        (np.asfortranarray(VALUE_ND), "holds columns (Fortran order), not rows"),
    ],
)
def test_other_arrays_are_refused(tmp_path, value, message):
    np.save(tmp_path / "x.npy", value)
    assert message in refusal(tmp_path / "x.npy")


def with_header(text: str, values: bytes = b"", version: int = 1) -> bytes:
    header = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + values


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, or not a .npy file"),
        (b"\x93NUMPY\x01\x00", "truncated, or not a .npy file"),
        (b"PK\x03\x04" + bytes(100), "truncated, or not a .npy file"),
        (with_header("", version=9), "truncated, or not a .npy file"),
        (with_header("(" * 9000), "truncated, or not a .npy file"),
        (with_header("{" * 60_000), "truncated, or not a .npy file"),
        (with_header("'''"), "truncated, or not a .npy file"),
        (with_header("__import__('os').getcwd()"), "truncated, or not a .npy file"),
        (with_header(PLAIN % "(4, 'x')"), "truncated, or not a .npy file"),
        (with_header(PLAIN.replace("<f4", "<f4x") % "(4, 3)"), "truncated, or not a .npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "truncated, or not a .npy file"),
        (with_header(PLAIN % "(1000000000000, 512)"), "holds float32 [1000000000000, 512], meta.json says"),
        (with_header(PLAIN % "(4, -3)", bytes(48)), "holds float32 [4, -3]"),
        (with_header(PLAIN % "(4, 3)", bytes(44)), "truncated or damaged: 44 bytes of values, not 48"),
        (with_header(PLAIN % "(4, 3)", bytes(52)), "truncated or damaged: 52 bytes of values, not 48"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    assert message in refusal(tmp_path / "x.npy")


def test_a_shape_that_both_files_claim_takes_no_memory(tmp_path):
    (tmp_path / "x.npy").write_bytes(with_header(PLAIN % "(2147483647, 2147483647)"))
    assert "0 bytes of values, not 18,446,744,056,529,682,436" in refusal(tmp_path / "x.npy", (2147483647,) * 2)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    assert refusal(tmp_path / "x.npy") == "cannot be read (a named pipe, not a regular file); meta.json lists it"
    assert "a folder, not a regular file" in refusal(tmp_path)
