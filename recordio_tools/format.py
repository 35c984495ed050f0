"""RecordIO framing and image record headers; header columns of many records; scanning damaged files.

A frame is a magic word, a word with a 3-bit part code and a 29-bit length, the bytes, and zeros up to a multiple of
four. A record that contains the magic word at a multiple of four is split there into parts; the word itself is left
out, and the reader inserts it between the parts again. The magic word therefore never appears at an aligned offset
inside a frame, so that reading can resume at the next one after damage.

The header of an image record is flag, label, id and id2. `flag` is the number of float32 labels that follow the
header; 0 means that the label in the header is the only one.

Source: the recordio format of dmlc-core, which MXNet uses. N is a number of records.
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
FRAME_STRUCT = struct.Struct("<II")
HEADER_STRUCT = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = range(4)  # part codes
LENGTH_BITS = 29
MAX_LENGTH = (1 << LENGTH_BITS) - 1
MAX_EXACT_FLOAT32 = 1 << 24  # float32 represents every integer up to here
_BLOCK_RECORDS = 1 << 18  # records gathered at a time, to keep temporaries small
_MIN_RECORD_BYTES = FRAME_STRUCT.size + HEADER_STRUCT.size

Label = float | np.ndarray


class IRHeader(NamedTuple):
    """Header of one record: number of vector labels, label (a float, or a vector [flag]), id and second id."""

    flag: int
    label: Label
    id: int
    id2: int


class Record(NamedTuple):
    """A header and the bytes after it; the payload is a view of the file if the file holds it in one piece."""

    header: IRHeader
    payload: memoryview


class HeaderColumns(NamedTuple):
    """Fields of N headers: label counts, ids, lengths of the first part, the first two labels (0 if absent)."""

    flag_N: np.ndarray
    id_N: np.ndarray
    length_N: np.ndarray
    label_N: np.ndarray
    second_label_N: np.ndarray


class ScannedRecord(NamedTuple):
    """One record of a scan: its offset, and either its bytes or the reason why it cannot be read."""

    offset: int
    record: memoryview | None
    reason: str | None


def is_beyond_int64(digits: str) -> bool:
    """Checks if a text of decimal digits, of any length, states a number above 2^63 - 1."""
    significant = digits.lstrip("0")
    return len(significant) > 19 or (len(significant) == 19 and int(significant) >= 1 << 63)


def align4(length: int) -> int:
    """Returns the length rounded up to a multiple of four."""
    return (length + 3) & ~3


def encode_record(record: bytes) -> bytes:
    """Returns the frames of one record, byte for byte as MXNet writes them.

    Raises RecordIOError if the record is longer than the 29 bits of the length field can state.
    """
    if len(record) > MAX_LENGTH:
        raise RecordIOError(f"a record of {len(record)} bytes is too long; the format allows {MAX_LENGTH}")
    cuts = list(_aligned_magic(record))
    if not cuts:
        return _encode_frame(WHOLE, record)
    starts = [0, *(cut + 4 for cut in cuts)]
    parts = [record[start:end] for start, end in zip(starts, [*cuts, len(record)], strict=True)]
    codes = [FIRST] + [MIDDLE] * (len(parts) - 2) + [LAST]
    return b"".join(_encode_frame(code, part) for code, part in zip(codes, parts, strict=True))


def _encode_frame(code: int, part: bytes) -> bytes:
    return FRAME_STRUCT.pack(MAGIC, code << LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4)


def _aligned_magic(record: bytes) -> Iterator[int]:
    offset = record.find(MAGIC_BYTES)
    while offset >= 0:
        is_aligned = offset % 4 == 0
        if is_aligned:
            yield offset
        offset = record.find(MAGIC_BYTES, offset + (4 if is_aligned else 1))


def encode_header(label: float | Sequence[float] | np.ndarray, id: int, id2: int = 0) -> bytes:
    """Returns header bytes as MXNet packs them: a number is part of the header, a vector [n] follows it as float32."""
    if not (0 <= id < 1 << 64 and 0 <= id2 < 1 << 64):
        raise RecordIOError(f"record ids must be in 0..2^64-1, not {id}, {id2}")
    if np.ndim(label) == 0:
        return HEADER_STRUCT.pack(0, float(label), id, id2)
    vector = np.asarray(label, dtype="<f4").ravel()
    return HEADER_STRUCT.pack(vector.size, 0.0, id, id2) + vector.tobytes()


def read_frame(view: memoryview, offset: int) -> tuple[int, int, int]:
    """Returns part code, start and end of the frame at `offset`; raises RecordIOError naming the damage."""
    size = len(view)
    if offset < 0 or offset % 4 or offset + FRAME_STRUCT.size > size:
        raise RecordIOError(f"no frame can begin at offset {offset} of {size} bytes")
    magic, word = FRAME_STRUCT.unpack_from(view, offset)
    if magic != MAGIC:
        raise RecordIOError(f"no magic word at offset {offset}")
    code, length = word >> LENGTH_BITS, word & MAX_LENGTH
    start = offset + FRAME_STRUCT.size
    if code > LAST:
        raise RecordIOError(f"unknown part code {code} at offset {offset}")
    if start + length > size:
        raise RecordIOError(f"truncated: {length} bytes announced at offset {offset}, {size - start} are left")
    return code, start, start + length


def read_record(view: memoryview, offset: int) -> tuple[memoryview, int]:
    """Returns the bytes of the record at `offset` and the offset after its last frame.

    A record in one frame is a view of `view`; the parts of any other are joined in new memory.
    """
    code, start, end = read_frame(view, offset)
    if code == WHOLE:
        return view[start:end], _next_offset(view, end)
    if code != FIRST:
        raise RecordIOError(f"a continuation part without its first part at offset {offset}")
    parts = [view[start:end]]
    while code != LAST:
        offset = _next_offset(view, end)
        if offset == len(view):
            raise RecordIOError(f"truncated: the file ends at offset {offset}, before the record's last part")
        code, start, end = read_frame(view, offset)
        if code not in (MIDDLE, LAST):
            raise RecordIOError(f"a new record begins at offset {offset}, before the last part of this one")
        parts.append(view[start:end])
    return memoryview(MAGIC_BYTES.join(parts)), _next_offset(view, end)


def _next_offset(view: memoryview, end: int) -> int:
    return min(align4(end), len(view))


def decode_record(record: memoryview, label_width: int = 4) -> Record:
    """Splits a record's bytes into header and payload; labels of a vector are `label_width` bytes wide (4 or 8).

    Raises RecordIOError if the record is shorter than its header states.
    """
    if len(record) < HEADER_STRUCT.size:
        raise RecordIOError(f"too short for a header: {len(record)} bytes")
    flag, label, id, id2 = HEADER_STRUCT.unpack_from(record)
    start = HEADER_STRUCT.size + flag * label_width
    if start > len(record):
        raise RecordIOError(f"too short for its {flag} labels: {len(record)} bytes")
    if flag:
        label = np.frombuffer(record, f"<f{label_width}", flag, HEADER_STRUCT.size).copy()
    return Record(IRHeader(flag, label, id, id2), record[start:])


def infer_label_width(record: memoryview) -> int:
    """Returns the bytes of each label, 4 or 8, inferred from record 0, which holds two labels and no image.

    An old script that merged face sets wrote its vectors as float64. Any other record counts as the standard 4.
    """
    if len(record) != HEADER_STRUCT.size + 16 or HEADER_STRUCT.unpack_from(record)[0] != 2:
        return 4
    first, last = np.frombuffer(record, "<f8", 2, HEADER_STRUCT.size)
    is_range = np.isfinite(last) and float(first).is_integer() and float(last).is_integer() and 1 <= first <= last
    return 8 if is_range else 4


def gather_headers(
    view: memoryview, offset_N: np.ndarray, label_width: int = 4, progress: ProgressFn = no_progress
) -> HeaderColumns:
    """Reads the headers at `offset_N` without a loop over records; one sequential pass if offsets are in file order.

    Raises RecordIOError naming the offset of the first record without a header.
    """
    total = len(offset_N)
    dtypes = (np.uint32, np.uint64, np.int64, np.float64, np.float64)
    columns = HeaderColumns(*(np.empty(total, dtype) for dtype in dtypes))
    for start in range(0, total, _BLOCK_RECORDS):
        block = slice(start, start + _BLOCK_RECORDS)
        for column, values in zip(columns, _gather_block(view, offset_N[block], label_width), strict=True):
            column[block] = values
        progress("reading headers", min(block.stop, total), total)
    return columns


def _gather_block(view: memoryview, offset_N: np.ndarray, label_width: int) -> HeaderColumns:
    if (wrong := (offset_N % 4 != 0) | (offset_N < 0) | (offset_N + _MIN_RECORD_BYTES > len(view))).any():
        raise RecordIOError(f"no record with a header can begin at offset {offset_N[wrong][0]}")
    words = np.frombuffer(view, "<u4", len(view) // 4)
    word_N = offset_N // 4
    if (wrong := words[word_N] != MAGIC).any():
        raise RecordIOError(f"no magic word at offset {offset_N[wrong][0]}; run verify")
    frame_N = words[word_N + 1]
    length_N = (frame_N & MAX_LENGTH).astype(np.int64)
    flag_N = words[word_N + 2].copy()
    id_N = words[word_N + 4].astype(np.uint64) | words[word_N + 5].astype(np.uint64) << np.uint64(32)
    label_N = words[word_N + 3].view("<f4").astype(np.float64)
    second_label_N = np.zeros(len(offset_N))
    needed_N = HEADER_STRUCT.size + np.minimum(flag_N, 2).astype(np.int64) * label_width
    is_inside_N = offset_N + FRAME_STRUCT.size + length_N <= len(view)
    is_simple_N = (frame_N >> LENGTH_BITS == WHOLE) & (length_N >= needed_N) & is_inside_N
    for count, column in ((1, label_N), (2, second_label_N)):
        has_label_N = is_simple_N & (flag_N >= count)
        first_word_N = word_N[has_label_N] + _MIN_RECORD_BYTES // 4 + (count - 1) * label_width // 4
        column[has_label_N] = _labels_at(words, first_word_N, label_width)
    columns = HeaderColumns(flag_N, id_N, length_N, label_N, second_label_N)
    for row in np.flatnonzero(~is_simple_N):  # records in parts, and damaged ones
        _read_header_row(view, int(offset_N[row]), label_width, columns, row)
    return columns


def _labels_at(words: np.ndarray, word_N: np.ndarray, label_width: int) -> np.ndarray:
    if label_width == 4:
        return words[word_N].view("<f4")
    return np.stack([words[word_N], words[word_N + 1]], axis=1).view("<f8").ravel()


def _read_header_row(view: memoryview, offset: int, label_width: int, columns: HeaderColumns, row: int) -> None:
    try:
        header = decode_record(read_record(view, offset)[0], label_width).header
    except RecordIOError as error:
        raise RecordIOError(f"record at offset {offset}: {error}; run verify") from None
    labels = np.ravel(header.label)
    columns.flag_N[row], columns.id_N[row], columns.label_N[row] = header.flag, header.id, labels[0]
    columns.second_label_N[row] = labels[1] if header.flag > 1 else 0.0


def scan_records(view: memoryview, indexed: Sequence[int]) -> Iterator[ScannedRecord]:
    """Yields every record of the file in order, damaged ones too.

    `indexed` holds the sorted offsets that the index names; it may be empty. If a record's length and the place of the
    next record disagree, they decide which of the two is damaged.
    """
    beginning = memoryview(_record_beginnings(view, np.asarray(indexed, np.int64)))
    offset = 0
    while offset < len(view):
        try:
            record, following = read_record(view, offset)
        except RecordIOError as error:
            yield ScannedRecord(offset, None, str(error))
            offset = find_record(view, offset + 4)
            continue
        row = bisect_right(beginning, offset)
        if row < len(beginning) and (covered := beginning[row]) < following:
            yield ScannedRecord(offset, None, f"its length runs over the record at offset {covered}")
            offset = covered
        elif not _ends_at_record(view, indexed, following) and (
            (resumed := find_record(view, offset + 4)) < following or len(indexed)
        ):
            yield ScannedRecord(offset, None, f"its length ends at offset {following}, where no record begins")
            offset = resumed
        else:
            yield ScannedRecord(offset, record, None)
            offset = following


def find_record(view: memoryview, offset: int) -> int:
    """Returns the next offset, from `offset` on, at which a record may begin; the end of the file if there is none."""
    # The next record is usually near; a file of damaged records would be copied for each of them.
    start, block = align4(offset), 1 << 6
    while start < len(view):
        piece = bytes(view[start : start + block + FRAME_STRUCT.size])
        for position in _aligned_magic(piece):
            is_inside = position < block and position + FRAME_STRUCT.size <= len(piece)
            if is_inside and FRAME_STRUCT.unpack_from(piece, position)[1] >> LENGTH_BITS in (WHOLE, FIRST):
                return start + position
        start, block = start + block, min(2 * block, 1 << 24)
    return len(view)


def _record_beginnings(view: memoryview, offset_N: np.ndarray) -> np.ndarray:
    """Those of the offsets at which a record begins, as `_begins_record` checks one of them."""
    offset_N = offset_N[(offset_N >= 0) & (offset_N % 4 == 0) & (offset_N <= len(view) - FRAME_STRUCT.size)]
    words = np.frombuffer(view, "<u4", len(view) // 4)
    frame_N = words[offset_N // 4 + 1]
    is_inside_N = offset_N + FRAME_STRUCT.size + (frame_N & MAX_LENGTH) <= len(view)
    return offset_N[(words[offset_N // 4] == MAGIC) & (frame_N >> LENGTH_BITS <= FIRST) & is_inside_N]


def _ends_at_record(view: memoryview, indexed: Sequence[int], following: int) -> bool:
    """True if the file ends at `following`, or the file or the index has a record there."""
    if following >= len(view) or _begins_record(view, following):
        return True
    row = bisect_left(indexed, following)
    return row < len(indexed) and indexed[row] == following


def _begins_record(view: memoryview, offset: int) -> bool:
    try:
        return read_frame(view, offset)[0] in (WHOLE, FIRST)
    except RecordIOError:
        return False
