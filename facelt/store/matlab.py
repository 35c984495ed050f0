"""Reading MATLAB files of version 5: numeric arrays, text, and cell arrays of text.

scipy's reader allocates what the dimensions of an array claim, 2.5 GB for a list of six names. This one reads plain
arrays only and checks each size against the bytes that are there. Source of the format: MathWorks, MAT-File Format.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_CONTENT_BYTES = 1 << 22
"""Limit of the uncompressed content, enough for 40,000 names; a compressed file may claim a thousand times its size."""
_TOO_LARGE = f"its variables have {MAX_CONTENT_BYTES:,} bytes or more"
_HEADER_BYTES, _TAG_BYTES = 128, 8
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_ENCODINGS = {2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_COMPLEX_FLAG = 0x800
_MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class _Element:
    kind: int
    content: memoryview


def read_matlab(content: bytes) -> dict[str, np.ndarray]:
    """Returns the variables of a MATLAB file of version 5.

    Text is an array with one string; a cell array has one value for each cell, in MATLAB's order (by columns), dtype
    object: a string, an array, or None for an empty cell.

    Raises ValueError, in one line, for anything else: another version, a truncated or inconsistent element, content of
    `MAX_CONTENT_BYTES` or more, structures, sparse and complex arrays, cells in cells.
    """
    if len(content) < _HEADER_BYTES or content[124:128] != b"\x00\x01IM":
        raise ValueError("its header is another")
    variables, total = {}, 0
    for element in _elements(memoryview(content)[_HEADER_BYTES:]):
        matrix = _decompress(element.content) if element.kind == _COMPRESSED else element
        total += len(matrix.content)
        if total >= MAX_CONTENT_BYTES:
            raise ValueError(_TOO_LARGE)
        name, value = _read_array(matrix)
        variables[name] = value
    return variables


def _decompress(content: memoryview) -> _Element:
    try:
        plain = zlib.decompressobj().decompress(content, MAX_CONTENT_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(plain) == MAX_CONTENT_BYTES:
        raise ValueError(_TOO_LARGE)
    (element,) = _elements(memoryview(plain))
    return element


def _elements(content: memoryview) -> Iterator[_Element]:
    """Yields the elements that lie one after another in `content`."""
    position = 0
    while position < len(content):
        tag = content[position : position + _TAG_BYTES]
        if len(tag) < _TAG_BYTES:
            raise ValueError("it is truncated")
        kind, size = np.frombuffer(tag, "<u4").tolist()
        if small := kind >> 16:  # up to four bytes, in the place of the size
            kind, size, start = kind & 0xFFFF, small, position + 4
        else:
            start = position + _TAG_BYTES
        if size > (4 if small else len(content) - start):
            raise ValueError("it is truncated")
        yield _Element(kind, content[start : start + size])
        # Compressed elements alone are not padded to eight bytes.
        position = start + (4 if small else size if kind == _COMPRESSED else -(-size // 8) * 8)


def _read_array(matrix: _Element, *, in_cell: bool = False) -> tuple[str, np.ndarray]:
    if matrix.kind != _MATRIX:
        raise ValueError("it holds something else than variables")
    flags, dims, name, *parts = _elements(matrix.content)
    if (flags.kind, len(flags.content), dims.kind, name.kind) != (_UINT32, 8, _INT32, _INT8):
        raise ValueError("an array has no flags, dimensions or name")
    if not 2 <= len(dims.content) // 4 <= _MAX_DIMENSIONS:
        raise ValueError(f"an array has {len(dims.content) // 4} dimensions, not 2 to {_MAX_DIMENSIONS}")
    flag = int(np.frombuffer(flags.content[:4], "<u4")[0])
    shape, kind = np.frombuffer(dims.content, "<i4").tolist(), flag & 0xFF
    number = math.prod(shape)
    if kind == _CELL and not in_cell:
        cells = [_read_array(part, in_cell=True)[1] if len(part.content) else None for part in parts]
        values = (cell[0] if cell is not None and cell.dtype.kind == "U" else cell for cell in cells)
        value = np.fromiter(values, dtype=object, count=len(cells))
    elif kind == _CHAR and shape[0] <= 1 and len(parts) == 1 and parts[0].kind in _ENCODINGS:
        text = bytes(parts[0].content).decode(_ENCODINGS[parts[0].kind])
        value, number = np.array([text]), int(number == len(text))
    elif kind in _NUMERIC and not flag & _COMPLEX_FLAG and len(parts) == 1 and parts[0].kind in _DTYPES:
        value = np.frombuffer(parts[0].content, _DTYPES[parts[0].kind])
    else:
        raise ValueError("it holds something else than numbers, lines of text and cells of both")
    if number != len(value):
        raise ValueError("an array has another number of values than its dimensions say")
    return bytes(name.content).decode("latin-1"), value
