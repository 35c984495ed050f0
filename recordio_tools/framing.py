"""Framing of RecordIO: how a string of bytes lies in the file.

A frame is a magic word, a word with a 3-bit part code and a 29-bit length, the bytes, and zeros up to a multiple of
four. The magic word never stands at an aligned place inside a frame: a record that contains it there is cut at that
place into parts, the word itself left out, and the reader puts it back between the parts. So a damaged file can always
be entered again at the next aligned magic word.

Source: the recordio format of dmlc-core, which MXNet uses.
"""

import struct
from collections.abc import Iterator

from recordio_tools.errors import RecordIOError

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
