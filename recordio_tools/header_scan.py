"""Headers of many records at once, gathered from the map without a loop over records and without decoding an image.

N is the number of records asked for.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.framing import FRAME, LENGTH_BITS, MAGIC, MAX_LENGTH, WHOLE, read_record
from recordio_tools.header import HEADER, unpack

BLOCK = 1 << 18  # records gathered at a time, so that the temporaries stay small
SMALLEST = FRAME.size + HEADER.size
Progress = Callable[[int, int], None]


class Headers(NamedTuple):
    """Fields of N headers: label counts, ids, lengths of the first part, the first two labels (0 where absent)."""

    flag_N: np.ndarray
    id_N: np.ndarray
    length_N: np.ndarray
    label_N: np.ndarray
    second_label_N: np.ndarray


def gather_headers(
    view: memoryview, offset_N: np.ndarray, label_width: int = 4, progress: Progress | None = None
) -> Headers:
    """Headers at `offset_N`; offsets in file order make it one sequential pass. `progress` hears (done, all).

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
        if progress:
            progress(min(start + BLOCK, total), total)
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
