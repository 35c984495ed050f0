"""Record framing and headers: round trips of arbitrary bytes, errors for damaged records."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recordio_tools.errors import RecordIOError
from recordio_tools.format import (
    HEADER_STRUCT,
    MAGIC_BYTES,
    MAX_LENGTH,
    IRHeader,
    decode_record,
    encode_header,
    encode_record,
    find_record,
    infer_label_width,
    read_record,
)

pieces = st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=9), st.just(b"\x0a\x23"), st.just(b"\xd7\xce"))
records = st.lists(pieces, max_size=12).map(b"".join)


def reference_frames(record: bytes) -> bytes:
    """Returns the frames by the format's rule: split at every aligned magic word."""
    parts, part = [], b""
    for offset in range(0, len(record), 4):
        word = record[offset : offset + 4]
        if word == MAGIC_BYTES:
            parts.append(part)
            part = b""
        else:
            part += word
    parts.append(part)
    codes = [0] if len(parts) == 1 else [1] + [2] * (len(parts) - 2) + [3]
    return b"".join(
        struct.pack("<II", 0xCED7230A, code << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
        for code, part in zip(codes, parts, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(records, min_size=1, max_size=4))
def test_records_survive_the_file(written):
    frames = [encode_record(record) for record in written]
    assert frames == [reference_frames(record) for record in written]
    view, offset = memoryview(b"".join(frames)), 0
    for record, frame in zip(written, frames, strict=True):
        content, following = read_record(view, offset)
        assert bytes(content) == record
        assert following == offset + len(frame)
        assert find_record(view, offset + 4) == following  # no magic word inside a record
        offset = following


@settings(max_examples=100, deadline=None)
@given(records, st.data())
def test_a_truncated_file_is_reported(record, data):
    frames = encode_record(record)
    cut = data.draw(st.integers(0, max(len(frames) - 4, 0)))
    shortened = frames[:cut]
    if len(record) <= cut - 8 and frames.count(MAGIC_BYTES) == 1:
        assert bytes(read_record(memoryview(shortened), 0)[0]) == record  # only padding is missing
    else:
        with pytest.raises(RecordIOError):
            read_record(memoryview(shortened), 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(-4, 60))
def test_any_bytes_give_a_record_or_an_error(noise, offset):
    try:
        record, following = read_record(memoryview(noise), offset)
    except RecordIOError:
        return
    assert offset < following <= len(noise)
    assert len(record) <= len(noise)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (b"\x0b" + encode_record(b"abcd")[1:], "no magic word"),
        (struct.pack("<II", 0xCED7230A, 2 << 29), "without its first part"),
        (struct.pack("<II", 0xCED7230A, 1 << 29), "before the record's last part"),
        (struct.pack("<II", 0xCED7230A, 1 << 29) + encode_record(b"abcd"), "a new record begins"),
        (struct.pack("<II", 0xCED7230A, 5 << 29), "part code 5"),
        (encode_record(b"abcd")[:-1], "truncated"),
    ],
)
def test_damage_has_a_reason(frames, reason):
    with pytest.raises(RecordIOError, match=reason):
        read_record(memoryview(frames), 0)


def test_a_record_beyond_the_length_field_is_refused():
    class Long(bytes):
        def __len__(self):
            return MAX_LENGTH + 1

    with pytest.raises(RecordIOError, match="too long"):
        encode_record(Long())


def test_the_search_finds_records_across_its_blocks(monkeypatch):
    # A file longer than one block, its second record just at the border.
    first = encode_record(bytes((1 << 24) - 16))
    view = memoryview(first + encode_record(b"abcd"))
    assert find_record(view, 4) == len(first)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.floats(width=32, allow_nan=False), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5)
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=20),
)
def test_headers_survive(label, id, id2, payload):
    record = decode_record(memoryview(encode_header(label, id, id2) + payload))
    assert (record.header.id, record.header.id2) == (id, id2)
    assert record.header.flag == (len(label) if isinstance(label, list) else 0)
    assert np.ravel(record.header.label).tolist() == np.ravel(label).tolist()
    assert bytes(record.payload) == payload


def test_short_headers_are_refused():
    with pytest.raises(RecordIOError, match="too short for a header"):
        decode_record(memoryview(b"1234"))
    with pytest.raises(RecordIOError, match="too short for its 3 labels"):
        decode_record(memoryview(encode_header([1, 2, 3], 0)[:-1]))
    with pytest.raises(RecordIOError, match="ids must be"):
        encode_header(0, -1)


def test_the_label_width_is_inferred_from_record_0():
    wide = HEADER_STRUCT.pack(2, 0.0, 0, 0) + struct.pack("<dd", 101.0, 111.0)
    assert infer_label_width(memoryview(wide)) == 8
    assert decode_record(memoryview(wide), 8).header.label.tolist() == [101.0, 111.0]
    assert infer_label_width(memoryview(encode_header([101, 111], 0))) == 4
    assert infer_label_width(memoryview(encode_header([101, 111], 0) + b"8 bytes.")) == 4
    assert IRHeader(0, 1.0, 2, 3) == (0, 1.0, 2, 3)
