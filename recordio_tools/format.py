"""Framing of RecordIO: how a string of bytes lies in the file.

A frame is a magic word, a word with a 3-bit part code and a 29-bit length, the bytes, and zeros up to a multiple of
four. The magic word never stands at an aligned place inside a frame: a record that contains it there is cut at that
place into parts, the word itself left out, and the reader puts it back between the parts. So a damaged file can always
be entered again at the next aligned magic word.

Source: the recordio format of dmlc-core, which MXNet uses.

The header of an image record: flag, label, id, id2, and a vector of labels where flag says so.

`flag` is the number of labels that follow the header; 0 means that the header's own float32 holds the only one.

Headers of many records at once, gathered from the map without a loop over records and without decoding an image.

N is the number of records asked for.

A walk over a .rec that goes on after damage.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.progress import ProgressFn, no_progress

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
FRAME = struct.Struct("<II")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
MAX_LENGTH = (1 << LENGTH_BITS) - 1

Buffer = bytes | bytearray | memoryview


def padded(length: int) -> int:
    """The length rounded up to a multiple of four."""
    return (length + 3) & ~3


def encode(record: bytes) -> bytes:
    """The frames of one record, byte for byte as MXNet writes them.

    Raises RecordIOError where the record is longer than the 29 bits of the length field.
    """
    if len(record) > MAX_LENGTH:
        raise RecordIOError(f"a record of {len(record)} bytes is too long: the format ends at {MAX_LENGTH}")
    cuts = list(_aligned_magic(record))
    if not cuts:
        return _frame(WHOLE, record)
    starts = [0, *(cut + 4 for cut in cuts)]
    parts = [record[start:end] for start, end in zip(starts, [*cuts, len(record)], strict=True)]
    codes = [FIRST] + [MIDDLE] * (len(parts) - 2) + [LAST]
    return b"".join(_frame(code, part) for code, part in zip(codes, parts, strict=True))


def _aligned_magic(record: bytes) -> Iterator[int]:
    place = record.find(MAGIC_BYTES)
    while place >= 0:
        if place % 4 == 0:
            yield place
            place = record.find(MAGIC_BYTES, place + 4)
        else:
            place = record.find(MAGIC_BYTES, place + 1)


def _frame(code: int, part: bytes) -> bytes:
    return FRAME.pack(MAGIC, code << LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4)


def read_frame(view: memoryview, offset: int) -> tuple[int, int, int]:
    """Part code, start and end of the bytes of the frame at `offset`; raises RecordIOError saying what is damaged."""
    size = len(view)
    if offset < 0 or offset % 4 or offset + FRAME.size > size:
        raise RecordIOError(f"no frame can stand at offset {offset} of {size} bytes")
    magic, word = FRAME.unpack_from(view, offset)
    if magic != MAGIC:
        raise RecordIOError(f"no magic word at offset {offset}")
    code, length = word >> LENGTH_BITS, word & MAX_LENGTH
    start = offset + FRAME.size
    if code > LAST:
        raise RecordIOError(f"unknown part code {code} at offset {offset}")
    if start + length > size:
        raise RecordIOError(f"truncated: {length} bytes announced at offset {offset}, {size - start} are left")
    return code, start, start + length


def read_record(view: memoryview, offset: int) -> tuple[memoryview, int]:
    """The bytes of the record that starts at `offset`, and the offset after its last frame.

    A record in one frame is a view of `view`; a record in parts is put together in new memory.
    """
    code, start, end = read_frame(view, offset)
    if code == WHOLE:
        return view[start:end], _next(view, end)
    if code != FIRST:
        raise RecordIOError(f"a continuation part without its first part at offset {offset}")
    parts = [view[start:end]]
    while code != LAST:
        offset = _next(view, end)
        if offset == len(view):
            raise RecordIOError(f"truncated: the file ends at offset {offset}, before the record's last part")
        code, start, end = read_frame(view, offset)
        if code not in (MIDDLE, LAST):
            raise RecordIOError(f"a new record begins at offset {offset}, before the last part of this one")
        parts.append(view[start:end])
    return memoryview(MAGIC_BYTES.join(parts)), _next(view, end)


def _next(view: memoryview, end: int) -> int:
    return min(padded(end), len(view))


def find_record(view: memoryview, offset: int) -> int:
    """The next offset at or after `offset` where a record may begin; the end of the file where there is none."""
    block = 1 << 24
    for begin in range(padded(offset), len(view), block):
        piece = bytes(view[begin : begin + block + FRAME.size])
        for place in _aligned_magic(piece):
            inside = place < block and place + FRAME.size <= len(piece)
            if inside and FRAME.unpack_from(piece, place)[1] >> LENGTH_BITS in (WHOLE, FIRST):
                return begin + place
    return len(view)


HEADER = struct.Struct("<IfQQ")
EXACT_FLOAT32 = 1 << 24  # every integer up to here has a float32 of its own

Label = float | np.ndarray


class IRHeader(NamedTuple):
    """Header of one record: number of vector labels, label (a float, or a vector [flag]), id and second id."""

    flag: int
    label: Label
    id: int
    id2: int


class Record(NamedTuple):
    """A header and the bytes after it; the payload is a view of the file wherever the file holds it in one piece."""

    header: IRHeader
    payload: memoryview


def pack_header(label: float | Sequence[float] | np.ndarray, id: int, id2: int = 0) -> bytes:
    """Header bytes, as MXNet packs them: a number goes into the header, a vector [n] follows it as float32."""
    if not (0 <= id < 1 << 64 and 0 <= id2 < 1 << 64):
        raise RecordIOError(f"record ids must lie in 0..2^64-1, not {id}, {id2}")
    if np.ndim(label) == 0:
        return HEADER.pack(0, float(label), id, id2)
    vector = np.asarray(label, dtype="<f4").ravel()
    return HEADER.pack(vector.size, 0.0, id, id2) + vector.tobytes()


def unpack(record: memoryview, label_width: int = 4) -> Record:
    """Split a record's bytes into header and payload; labels of a vector are `label_width` bytes wide (4 or 8).

    Raises RecordIOError where the record is shorter than its header says.
    """
    if len(record) < HEADER.size:
        raise RecordIOError(f"too short for a header: {len(record)} bytes")
    flag, label, id, id2 = HEADER.unpack_from(record)
    start = HEADER.size + flag * label_width
    if start > len(record):
        raise RecordIOError(f"too short for its {flag} labels: {len(record)} bytes")
    if flag:
        label = np.frombuffer(record, f"<f{label_width}", flag, HEADER.size).copy()
    return Record(IRHeader(flag, label, id, id2), record[start:])


def infer_label_width(record: memoryview) -> int:
    """4 or 8: the bytes of each label, told from a record that holds labels and nothing else.

    An old script that merged face sets wrote its vectors as float64. Record 0 holds two labels and no image, so that
    its size tells. Any other record passes for the standard's 4.
    """
    if len(record) != HEADER.size + 16 or HEADER.unpack_from(record)[0] != 2:
        return 4
    first, last = np.frombuffer(record, "<f8", 2, HEADER.size)
    whole = np.isfinite(last) and float(first).is_integer() and float(last).is_integer()
    return 8 if whole and 1 <= first <= last else 4


BLOCK = 1 << 18  # records gathered at a time, so that the temporaries stay small
SMALLEST = FRAME.size + HEADER.size


class Headers(NamedTuple):
    """Fields of N headers: label counts, ids, lengths of the first part, the first two labels (0 where absent)."""

    flag_N: np.ndarray
    id_N: np.ndarray
    length_N: np.ndarray
    label_N: np.ndarray
    second_label_N: np.ndarray


def gather_headers(
    view: memoryview, offset_N: np.ndarray, label_width: int = 4, progress: ProgressFn = no_progress
) -> Headers:
    """Headers at `offset_N`; offsets in file order make it one sequential pass.

    Raises RecordIOError naming the offset of the first record that holds no header.
    """
    total = len(offset_N)
    columns = Headers(
        np.empty(total, np.uint32),
        np.empty(total, np.uint64),
        np.empty(total, np.int64),
        np.empty(total),
        np.empty(total),
    )
    for start in range(0, total, BLOCK):
        block = slice(start, start + BLOCK)
        for column, values in zip(columns, _gather(view, offset_N[block], label_width), strict=True):
            column[block] = values
        progress("reading headers", min(start + BLOCK, total), total)
    return columns


def _gather(view: memoryview, offset_N: np.ndarray, label_width: int) -> Headers:
    if (wrong := (offset_N % 4 != 0) | (offset_N < 0) | (offset_N + SMALLEST > len(view))).any():
        raise RecordIOError(f"no record with a header can stand at offset {offset_N[wrong][0]}")
    words = np.frombuffer(view, "<u4", len(view) // 4)
    place_N = offset_N // 4
    if (wrong := words[place_N] != MAGIC).any():
        raise RecordIOError(f"no magic word at offset {offset_N[wrong][0]}; run verify")
    frame_N = words[place_N + 1]
    length_N = (frame_N & MAX_LENGTH).astype(np.int64)
    flag_N = words[place_N + 2].copy()
    id_N = words[place_N + 4].astype(np.uint64) | words[place_N + 5].astype(np.uint64) << np.uint64(32)
    label_N = words[place_N + 3].view("<f4").astype(np.float64)
    second_label_N = np.zeros(len(offset_N))
    needed_N = HEADER.size + np.minimum(flag_N, 2).astype(np.int64) * label_width
    simple_N = (
        (frame_N >> LENGTH_BITS == WHOLE) & (length_N >= needed_N) & (offset_N + FRAME.size + length_N <= len(view))
    )
    for count, column in ((1, label_N), (2, second_label_N)):
        vector_N = simple_N & (flag_N >= count)
        column[vector_N] = _labels(
            words, place_N[vector_N] + SMALLEST // 4 + (count - 1) * label_width // 4, label_width
        )
    headers = Headers(flag_N, id_N, length_N, label_N, second_label_N)
    for row in np.flatnonzero(~simple_N):  # records in parts, and damaged ones
        _read_one(view, int(offset_N[row]), label_width, headers, row)
    return headers


def _labels(words: np.ndarray, place_N: np.ndarray, label_width: int) -> np.ndarray:
    if label_width == 4:
        return words[place_N].view("<f4")
    return np.stack([words[place_N], words[place_N + 1]], axis=1).view("<f8").ravel()


def _read_one(view: memoryview, offset: int, label_width: int, headers: Headers, row: int) -> None:
    try:
        header = unpack(read_record(view, offset)[0], label_width).header
    except RecordIOError as error:
        raise RecordIOError(f"record at offset {offset}: {error}; run verify") from None
    labels = np.ravel(header.label)
    headers.flag_N[row], headers.id_N[row], headers.label_N[row] = header.flag, header.id, labels[0]
    headers.second_label_N[row] = labels[1] if header.flag > 1 else 0.0


class Step(NamedTuple):
    """One record: its offset, and either its bytes or the reason why it cannot be read."""

    offset: int
    record: memoryview | None
    reason: str | None


def walk_records(view: memoryview, indexed: Sequence[int]) -> Iterator[Step]:
    """Every record of the file in order, damaged ones too.

    `indexed` is the sorted offsets that an index names, empty where there is none. They tell which record is at fault
    where a length and the place of the next record disagree.
    """
    offset = 0
    while offset < len(view):
        try:
            record, following = read_record(view, offset)
        except RecordIOError as error:
            yield Step(offset, None, str(error))
            offset = find_record(view, offset + 4)
            continue
        swallowed = _swallowed(view, indexed, offset, following)
        if swallowed is not None:
            yield Step(offset, None, f"its length runs over the record at offset {swallowed}")
            offset = swallowed
        elif _misses(view, indexed, following) and (
            (found := find_record(view, offset + 4)) < following or len(indexed)
        ):
            yield Step(offset, None, f"its length ends at offset {following}, where no record begins")
            offset = found
        else:
            yield Step(offset, record, None)
            offset = following


def _swallowed(view: memoryview, indexed: Sequence[int], offset: int, following: int) -> int | None:
    """The first record that the index names inside this one."""
    inside = indexed[bisect_right(indexed, offset) : bisect_left(indexed, following)]
    return next((place for place in inside if _begins_record(view, place)), None)


def _misses(view: memoryview, indexed: Sequence[int], following: int) -> bool:
    """Whether a length leads to where neither the file nor the index has a record."""
    if following >= len(view) or _begins_record(view, following):
        return False
    place = bisect_left(indexed, following)
    return not (place < len(indexed) and indexed[place] == following)


def _begins_record(view: memoryview, offset: int) -> bool:
    try:
        return read_frame(view, offset)[0] in (WHOLE, FIRST)
    except RecordIOError:
        return False
