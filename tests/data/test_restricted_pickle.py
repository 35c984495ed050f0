"""Restricted unpickling: plain values are read as by pickle; nothing is executed, and memory stays bounded."""

import os
import pickle
import random
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelt.data import restricted_pickle
from facelt.data.restricted_pickle import PickledArray, load_restricted
from tests.data.pair_pickles import doubled


def read(payload: bytes, dtypes: tuple[str, ...] = ("u1", "b1")) -> object:
    return load_restricted(payload, what="test", encoding="bytes", dtypes=dtypes)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(min_size=1, max_size=300),
    lambda parts: st.lists(parts, max_size=5) | st.dictionaries(st.text(max_size=5), parts, max_size=5),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(7, dtype=np.uint8),
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        np.array([True, False, True]),
    ],
)
def test_arrays_of_bytes_and_of_booleans_are_read(array, protocol):
    result = read(pickle.dumps(array, protocol))
    assert isinstance(result, PickledArray)
    assert result.value.dtype == array.dtype
    assert np.array_equal(result.value, array)
    scalars = read(pickle.dumps([np.True_, np.False_], protocol))
    assert scalars == [True, False]


class Runs:
    """Object whose pickle calls a function when loaded."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path, protocol):
    canary = tmp_path / "canary"
    calls = (
        (os.mkdir, (str(canary),)),
        (eval, (f"__import__('os').mkdir({str(canary)!r})",)),
        (np.load, (str(canary),)),
        (random.Random, ()),
        (bytearray, (5,)),
    )
    for call in calls:
        with pytest.raises(pickle.UnpicklingError, match=r"^\S+ is not allowed in a test$"):
            read(pickle.dumps([1, Runs(*call)], protocol))
        assert not canary.exists()
    pickle.loads(pickle.dumps([1, Runs(*calls[0])], protocol))
    assert canary.is_dir(), "the pickle would have made the folder, had it been let"


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval is not allowed"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system is not allowed"),
        (b"\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "numpy.ndarray.__reduce__ is not allowed"),
        # Older opcodes that make objects, and references to objects outside the file.
        (b"(inumpy\nndarray\n.", "the opcode b'i'"),
        (b"(cnumpy\nndarray\no.", "the opcode b'o'"),
        (b"cnumpy\nndarray\n)\x81.", r"the opcode b'\\x81'"),
        (b"\x82\x01.", r"the opcode b'\\x82'"),
        (b"S'x'\nQ.", "the opcode b'Q'"),
        (b"Px\n.", "the opcode b'P'"),
        (b"\x97.", r"the opcode b'\\x97'"),
        # Allowed globals in unexpected uses.
        (b"cnumpy\nndarray\n(K\x05tR.", "calls a class that only names a type"),
        (RECONSTRUCT + b"(cnumpy\ndtype\nK\x00U\x01btR.", "an array has an unknown class"),
        (RECONSTRUCT + b"}U\x0c__defaults__K\x01sb.", "sets the state of a global"),
        (b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "an array has the type 'O8', expected u1 or b1"),
        (b"](" + doubled(60) + b"cnumpy\ndtype\n(h\x3ctRe.", r"an array has the type \(+\.\.\..*, expected u1 or b1"),
        # Hashing such a key takes forever.
        (b"](" + doubled(60) + b"}h\x3cK\x01se.", "a dictionary has keys that are not text"),
        (b"](" + doubled(60) + b"}(h\x3cK\x01ue.", "a dictionary has keys that are not text"),
        (b"](" + doubled(60) + b"(h\x3cK\x01de.", "a dictionary has keys that are not text"),
        (b"]K\x00K\x01s.", "a dictionary has keys that are not text"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x74R.", "is not called with bytes as latin1 text"),
        (b"cnumpy.core.numeric\n_frombuffer\n(S'abc'\nK\x01(K\x03tS'C'\ntR.", "an array is not made of bytes"),
    ],
)
def test_other_globals_opcodes_and_uses_are_refused(payload, reason):
    with pytest.raises(pickle.UnpicklingError, match=reason):
        read(payload)


def test_an_array_type_that_is_not_allowed_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="an array has the type 'b1', expected u1"):
        read(pickle.dumps(np.array([True])), dtypes=("u1",))


def peak_of(payload: bytes) -> tuple[Exception | None, int]:
    """Returns the error, if any, and the peak memory of reading."""
    tracemalloc.start()
    error = None
    try:
        read(payload)
    except Exception as raised:
        error = raised
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return error, peak


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b"ab.",
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"ab.",
        b"\x80\x05\x8d" + (2**33).to_bytes(8, "little") + b"ab.",
        b"\x80\x02T\xff\xff\xff\x7fab.",
        b"\x80\x02X\xff\xff\xff\x7fab.",
        b"\x80\x04\x95" + (2**33).to_bytes(8, "little") + b"N",
    ],
)
def test_a_length_beyond_the_end_is_refused_before_memory_is_taken(payload):
    error, peak = peak_of(payload)
    assert isinstance(error, EOFError)
    assert peak < 2**20


@pytest.mark.parametrize(
    "payload", [b"\x80\x02Nr\xff\xff\xff\x1f.", b"Np536870911\n.", b"\x80\x02N" * 300 + b"r\x00\x04\x00\x00."]
)
def test_a_large_memo_index_is_refused_before_memory_is_taken(payload):
    # pickle's C reader allocates 2^33 bytes for the first.
    error, peak = peak_of(payload)
    assert re.fullmatch(r"the memo index \d+ is too large", str(error))
    assert peak < 2**20


@pytest.mark.parametrize(
    "payload",
    [
        # The C reader drops the rest of a frame at an opcode that crosses its end, or at another frame.
        b"\x80\x04\x95\x02" + bytes(7) + b"NK" + b"\x01.",
        b"\x80\x04\x95\x0c" + bytes(7) + b"N\x95\x02" + bytes(7) + b"N.N.",
    ],
)
def test_frames_that_the_check_and_the_reader_may_see_differently_are_refused(payload):
    with pytest.raises(pickle.UnpicklingError, match="a frame ends within an opcode or contains another frame"):
        read(payload)


def test_too_many_opcodes_are_refused(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "MAX_OPCODES", 1000)
    assert len(read(b"](" + b"N" * 996 + b"e.")) == 996
    with pytest.raises(pickle.UnpicklingError, match="it has more than 1,000 opcodes"):
        read(b"](" + b"N" * 997 + b"e.")


@pytest.mark.parametrize("payload", [b"a.", b"N\x86.", b"e.", b"Ne.", b"(a.", b"h\x00.", b"q\x00.", b"]N(s."])
def test_values_that_do_not_exist_are_refused(payload):
    with pytest.raises(pickle.UnpicklingError, match="an opcode uses a value that does not exist"):
        read(payload)


def test_a_text_cannot_be_encoded_repeatedly():
    text, often = b"X" + (65535).to_bytes(4, "little") + b"a" * 65535, b"h\x00h\x01R" * 5000
    payload = b"\x80\x02(c_codecs\nencode\nq\x00" + text + b"X\x06\x00\x00\x00latin1\x86q\x01" + often + b"t."
    error, peak = peak_of(payload)
    assert "makes more bytes than the file has" in str(error)
    assert peak < 2**22


def test_one_text_cannot_be_the_bytes_of_many_arrays():
    text = b"X" + (65535).to_bytes(4, "little") + b"a" * 65535 + b"q\x00"
    names = RECONSTRUCT + b"q\x01cnumpy\nndarray\nq\x02cnumpy\ndtype\n(U\x02u1K\x00K\x01tRq\x03"
    array = b"h\x01(h\x02K\x00tR(K\x01(M\xff\xfft" + b"h\x03\x89h\x00tb"
    single = read(b"\x80\x02](" + text + names + array + b"e.")[-1]
    assert single.value.tobytes() == b"a" * 65535
    error, peak = peak_of(b"\x80\x02](" + text + names + array * 500 + b"e.")
    assert "makes more bytes than the file has" in str(error)
    assert peak < 2**22


def test_an_array_without_state_is_empty_as_in_numpy():
    assert read(RECONSTRUCT + b"(cnumpy\nndarray\nK\x00tR.").value.shape == (0,)
