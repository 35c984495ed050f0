"""Random access to the records of a .rec by memory map; its index, read from `.idx` or rebuilt by a scan."""

import contextlib
import mmap
import struct
import warnings
from array import array
from bisect import bisect_left
from pathlib import Path

import numpy as np

from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.cache import cache_path, file_stamp, load_or_compute
from recordio_tools.errors import RecordIOError
from recordio_tools.format import (
    FRAME_STRUCT,
    HEADER_STRUCT,
    MAGIC,
    MAX_LENGTH,
    IRHeader,
    Record,
    align4,
    decode_record,
    gather_headers,
    infer_label_width,
    is_beyond_int64,
    read_record,
)

_TAB, _NEWLINE = ord("\t"), ord("\n")
_FRAMED_HEADER = struct.Struct("<II" + HEADER_STRUCT.format.lstrip("<"))
_unpack_framed_header = _FRAMED_HEADER.unpack_from
_new_tuple = tuple.__new__  # a NamedTuple's own constructor would double the cost of a look-up


class RecordReader:
    """The records of `path` by key; `keys` is int64 [N] in file order.

    The index is read from `index_path` (default: the .idx next to the file). Without an index the records are scanned
    once, the ids of their headers become the keys, and the result is cached (in the folder `cache`, see `cache_path`).
    Payloads are views of the map. A reader may be shared by threads and forked processes, and pickled to spawned ones,
    which map the file themselves.

    `label_width` (4 or 8) is the size of each label of a vector; by default it is inferred from record 0, see
    `infer_label_width`. Raises RecordIOError for a missing, empty or damaged file.
    """

    def __init__(
        self,
        path: str | Path,
        index_path: str | Path | None = None,
        label_width: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.index_path = Path(index_path) if index_path else self.path.with_suffix(".idx")
        if index_path and not regular_file_exists(self.index_path):
            raise RecordIOError(f"{self.index_path}: no such index file")
        if label_width not in (None, 4, 8):
            raise RecordIOError(f"label_width must be 4 or 8, not {label_width}")
        self._map_file()
        try:
            self._set_index(*self._load_index(cache))
            self.label_width = label_width or self._infer_label_width()
        except BaseException:
            self.close()
            raise

    def _map_file(self) -> None:
        self._view: memoryview | None = None
        self._map = memory_map(self.path)
        self._view = memoryview(self._map)
        self._size = len(self._view)

    def _load_index(self, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
        if regular_file_exists(self.index_path):
            return read_index(self.index_path)
        path = cache_path(self.path, "index", cache)
        try:
            keys, offsets = load_or_compute(path, file_stamp(self.path), 2, lambda: np.stack(scan_index(self._view)))
        except RecordIOError as error:
            raise RecordIOError(f"{self.path}: {error}") from None
        return keys, offsets

    def _set_index(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        order = np.argsort(offsets, kind="stable")
        self.keys, self.offsets = keys[order], offsets[order]
        if (outside := (self.offsets % 4 != 0) | (self.offsets >= self._size)).any():
            key, offset = self.keys[outside][0], self.offsets[outside][0]
            raise RecordIOError(
                f"{self.index_path}: key {key} points at offset {offset}, where no record of {self.path} "
                f"({self._size} bytes) can begin; the files do not match, or one is truncated: run verify"
            )
        by_key = np.argsort(self.keys, kind="stable")
        sorted_keys = self.keys[by_key]
        if (is_repeated := sorted_keys[1:] == sorted_keys[:-1]).any():
            raise RecordIOError(f"{self.index_path}: key {sorted_keys[1:][is_repeated][0]} is repeated; run verify")
        # Keys are nearly always 0..N: a table indexed by the key is then fastest. A dictionary of millions of records
        # would take gigabytes in every worker.
        self._is_dense = bool(len(keys)) and int(sorted_keys[-1]) < 4 * len(keys) + 1024
        if self._is_dense:
            table = np.full(int(sorted_keys[-1]) + 1, -1, np.int64)
            table[self.keys] = self.offsets
            self._table = memoryview(table)
        else:
            self._sorted_keys, self._table = memoryview(sorted_keys), memoryview(self.offsets[by_key].copy())

    def _infer_label_width(self) -> int:
        return infer_label_width(self.read_raw(0)) if 0 in self else 4

    def _find(self, key: int) -> int:
        if self._is_dense:
            return self._table[key] if 0 <= key < len(self._table) else -1
        row = bisect_left(self._sorted_keys, key)
        return self._table[row] if row < len(self._table) and self._sorted_keys[row] == key else -1

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        return self._find(key) >= 0

    @property
    def view(self) -> memoryview:
        """The bytes of the file."""
        if self._view is None:
            raise RecordIOError(f"{self.path}: the reader is closed")
        return self._view

    def offset(self, key: int) -> int:
        """Returns the offset of a record; raises RecordIOError for a key that is not in the index."""
        offset = self._find(key)
        if offset < 0:
            raise RecordIOError(f"{self.path}: no record has key {key}")
        return offset

    def read(self, key: int) -> Record:
        """Returns header and payload of one record. The payload is a view of the file, or new memory for parts.

        Raises RecordIOError naming the key and the damage.
        """
        # Inlined for the common case, a whole record with a plain label: this is the loader's inner loop.
        try:
            offset = self._table[key] if self._is_dense and key >= 0 else self._find(key)
            magic, length, flag, label, id, id2 = _unpack_framed_header(self._view, offset)
        except (IndexError, TypeError, struct.error):  # an unknown key, a closed reader, a record at the very end
            return self._read_checked(key)
        end = offset + 8 + length
        # A part code other than WHOLE makes `length` exceed MAX_LENGTH.
        if magic != MAGIC or flag or not HEADER_STRUCT.size <= length <= MAX_LENGTH or end > self._size or offset < 0:
            return self._read_checked(key)
        header = _new_tuple(IRHeader, (flag, label, id, id2))
        return _new_tuple(Record, (header, self._view[offset + _FRAMED_HEADER.size : end]))

    def _read_checked(self, key: int) -> Record:
        raw = self.read_raw(key)
        try:
            return decode_record(raw, self.label_width)
        except RecordIOError as error:
            raise self._damaged(key, error) from None

    def read_raw(self, key: int) -> memoryview:
        """Returns the bytes of one record with its header. Raises RecordIOError naming the key and the damage."""
        view = self.view
        offset = self.offset(key)
        try:
            return read_record(view, offset)[0]
        except RecordIOError as error:
            raise self._damaged(key, error) from None

    def _damaged(self, key: int, error: RecordIOError) -> RecordIOError:
        return RecordIOError(f"{self.path}: record {key} is damaged: {error}; run verify")

    def close(self) -> None:
        """Closes the map; payloads in use stay valid and keep it open until they are released."""
        if self._view is None:
            return
        self._view = None
        try:
            self._map.close()
        except BufferError:
            del self._map

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {
            "path": self.path,
            "index_path": self.index_path,
            "label_width": self.label_width,
            "index": (self.keys, self.offsets),
            "stamp": file_stamp(self.path),
        }

    def __setstate__(self, state: dict) -> None:
        self.path, self.index_path, self.label_width = state["path"], state["index_path"], state["label_width"]
        if file_stamp(self.path) != state["stamp"]:
            raise RecordIOError(f"{self.path}: the file has changed since it was opened")
        self._map_file()
        self._set_index(*state["index"])


def record_path(source: Path) -> Path:
    """Returns the .rec of `source`, which is that file or a folder with a train.rec. Raises RecordIOError if absent."""
    is_folder = source.is_dir()
    path = source / "train.rec" if is_folder else source
    if not regular_file_exists(path):
        problem = "the folder has no train.rec" if is_folder else "no such file"
        raise RecordIOError(f"{source}: {problem}; expected a .rec file or a folder with a train.rec")
    return path


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads keys and offsets, int64 [N] each, from an `.idx` of lines key, tab, offset.

    Raises RecordIOError naming the first wrong line.
    """
    regular_file_exists(path)
    text = path.read_bytes()
    if not text.strip():
        raise RecordIOError(f"{path}: the index is empty; delete the file to rebuild it from the records")
    if not text.endswith(b"\n"):
        text += b"\n"
    separators = np.frombuffer(text, np.uint8)
    separators = separators[(separators == _TAB) | (separators == _NEWLINE)]
    lines = np.count_nonzero(separators == _NEWLINE)
    regular = separators.size == 2 * lines and bool((separators[::2] == _TAB).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ") if regular else None
        except (DeprecationWarning, ValueError):
            numbers = None
    problem = None
    if numbers is None or numbers.size != 2 * lines or (numbers < 0).any():
        problem = _first_bad_line(text) or "its lines end in carriage returns"
    elif numbers.max() == np.iinfo(np.int64).max:  # numbers beyond it are read as it
        problem = _first_bad_line(text)
    if problem:
        raise RecordIOError(f"{path}: {problem}; delete the file to rebuild it from the records")
    return numbers[::2].copy(), numbers[1::2].copy()


def _first_bad_line(text: bytes) -> str | None:
    for number, line in enumerate(text.splitlines(), start=1):
        fields = [field.strip() for field in line.split(b"\t")]
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            return f"line {number} is not a key, a tab and an offset: {line[:60]!r}"
        if any(is_beyond_int64(field.decode()) for field in fields):
            return f"line {number} has a number above 2^63 - 1: {line[:60]!r}"
    return None


def scan_index(view: memoryview) -> tuple[np.ndarray, np.ndarray]:
    """Returns keys and offsets, int64 [N] each in file order, from one scan of the records.

    A record's key is the id in its header, as the usual writers store it. If ids repeat, or a record has no header,
    records are numbered from 0. Raises RecordIOError at the first record that cannot be read.
    """
    offsets = scan_offsets(view)
    keys = np.arange(len(offsets))
    with contextlib.suppress(RecordIOError):
        ids = gather_headers(view, offsets).id_N
        if np.unique(ids).size == ids.size and (ids < 1 << 63).all():
            keys = ids
    return keys.astype(np.int64), offsets


def scan_offsets(view: memoryview) -> np.ndarray:
    """Returns the offsets of the records, int64 [N]; each is known only after the record before it has been read."""
    offsets = array("q")
    offset, size, unpack = 0, len(view), FRAME_STRUCT.unpack_from
    while offset < size:
        offsets.append(offset)
        if offset + FRAME_STRUCT.size <= size:
            magic, word = unpack(view, offset)
            end = offset + FRAME_STRUCT.size + word
            if magic == MAGIC and word <= MAX_LENGTH and end <= size:  # a whole record
                offset = align4(end)
                continue
        try:
            _, offset = read_record(view, offset)
        except RecordIOError as error:
            raise RecordIOError(f"record {len(offsets) - 1}: {error}; run verify") from None
    return np.frombuffer(offsets, np.int64).copy() if offsets else np.zeros(0, np.int64)


def memory_map(path: Path) -> mmap.mmap:
    """Maps a whole file read-only; raises RecordIOError if it is no regular file, cannot be read or is empty."""
    regular_file_exists(path)
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RecordIOError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RecordIOError(f"{path}: the file is empty") from None
