"""The index: which key lies at which offset. Read from `.idx`, or made by walking the records where there is none."""

import contextlib
import warnings
from array import array
from pathlib import Path

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.framing import FRAME, MAGIC, MAX_LENGTH, padded, read_record
from recordio_tools.header_scan import gather_headers

TAB, NEWLINE = ord("\t"), ord("\n")


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, int64 [N] each, as the lines of an `.idx` give them (key, tab, offset).

    Raises RecordIOError naming the first line that is no such pair.
    """
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        text += b"\n"
    separators = np.frombuffer(text, np.uint8)
    separators = separators[(separators == TAB) | (separators == NEWLINE)]
    lines = np.count_nonzero(separators == NEWLINE)
    regular = separators.size == 2 * lines and bool((separators[::2] == TAB).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ") if regular else None
        except (DeprecationWarning, ValueError):
            numbers = None
    if numbers is None or numbers.size != 2 * lines or (numbers < 0).any():
        raise RecordIOError(f"{path}: {_first_bad_line(text)}; delete the file to have it made again from the records")
    return numbers[::2].copy(), numbers[1::2].copy()


def _first_bad_line(text: bytes) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(field.strip().isdigit() for field in fields):
            return f"line {number} is not a key, a tab and an offset: {line[:60]!r}"
    return "a number is out of range"


def index_text(keys: np.ndarray, offsets: np.ndarray) -> bytes:
    """The `.idx` of these keys and offsets [N], byte for byte as MXNet writes it."""
    return "".join(f"{key}\t{offset}\n" for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True)).encode()


def walk_index(view: memoryview) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, int64 [N] each in file order, found by walking every record once.

    A record's key is its header's id, as the usual writers store it. Where ids repeat, or a record has no header at
    all, the records are numbered from 0. Raises RecordIOError at the first record that cannot be read.
    """
    offsets = walk_offsets(view)
    keys = np.arange(len(offsets))
    with contextlib.suppress(RecordIOError):
        ids = gather_headers(view, offsets).id_N
        if np.unique(ids).size == ids.size and (ids < 1 << 63).all():
            keys = ids
    return keys.astype(np.int64), offsets


def walk_offsets(view: memoryview) -> np.ndarray:
    """Offsets of all records, int64 [N]: each is known only when the record before it has been read."""
    offsets = array("q")
    offset, size, unpack = 0, len(view), FRAME.unpack_from
    while offset < size:
        offsets.append(offset)
        if offset + FRAME.size <= size:
            magic, word = unpack(view, offset)
            end = offset + FRAME.size + word
            if magic == MAGIC and word <= MAX_LENGTH and end <= size:  # a whole record; the rest takes the long way
                offset = padded(end)
                continue
        try:
            _, offset = read_record(view, offset)
        except RecordIOError as error:
            raise RecordIOError(f"record {len(offsets) - 1}: {error}; run verify") from None
    return np.frombuffer(offsets, np.int64).copy() if offsets else np.zeros(0, np.int64)
