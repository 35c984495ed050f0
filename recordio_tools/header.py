"""The header of an image record: flag, label, id, id2, and a vector of labels where flag says so.

`flag` is the number of labels that follow the header; 0 means that the header's own float32 holds the only one.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recordio_tools.errors import RecordIOError

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
