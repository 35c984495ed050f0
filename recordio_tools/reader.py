"""Random access to the records of a .rec, through a memory map."""

import mmap
import struct
from bisect import bisect_left
from pathlib import Path

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.framing import MAGIC, MAX_LENGTH, read_record
from recordio_tools.header import HEADER, IRHeader, Record, infer_label_width, unpack
from recordio_tools.index import read_index, walk_index
from recordio_tools.scan_cache import cached, fingerprint

FRAMED_HEADER = struct.Struct("<II" + HEADER.format.lstrip("<"))
FRAMED_HEADER_AT = FRAMED_HEADER.unpack_from
new_tuple = tuple.__new__  # a NamedTuple's own constructor costs as much again as the whole look-up


def map_file(path: Path) -> mmap.mmap:
    """A read-only map of a whole file; raises RecordIOError where it cannot be read or is empty."""
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RecordIOError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RecordIOError(f"{path}: the file is empty") from None


class RecordReader:
    """The records of `path` by key; `keys` is int64 [N] in file order.

    The index is read from `index_path` (by default the .idx beside the file); where there is none, the records are
    walked once, their headers' ids become the keys, and the result is cached beside the file. Payloads are views of
    the map. One reader may be used by threads, by forked processes, and pickled to spawned ones, which map the file
    anew.

    `label_width` (4 or 8) is the size of each label of a vector; by default record 0 tells, see `infer_label_width`.
    Raises RecordIOError for a missing, empty or damaged file.
    """

    def __init__(self, path: str | Path, index_path: str | Path | None = None, label_width: int | None = None) -> None:
        self.path = Path(path)
        self.index_path = Path(index_path) if index_path else self.path.with_suffix(".idx")
        if index_path and not self.index_path.is_file():
            raise RecordIOError(f"{self.index_path}: no such index file")
        if label_width not in (None, 4, 8):
            raise RecordIOError(f"label_width must be 4 or 8, not {label_width}")
        self._map_file()
        try:
            self._take_index(*self._load_index())
            self.label_width = label_width or self._infer_label_width()
        except BaseException:
            self.close()
            raise

    def _map_file(self) -> None:
        self._view: memoryview | None = None
        self._map = map_file(self.path)
        self._view = memoryview(self._map)
        self._size = len(self._view)

    def _load_index(self) -> tuple[np.ndarray, np.ndarray]:
        if self.index_path.is_file():
            return read_index(self.index_path)
        cache = self.path.with_name(self.path.name + ".index.npy")
        try:
            keys, offsets = cached(cache, fingerprint(self.path), 2, lambda: np.stack(walk_index(self._view)))
        except RecordIOError as error:
            raise RecordIOError(f"{self.path}: {error}") from None
        return keys, offsets

    def _take_index(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        order = np.argsort(offsets, kind="stable")
        self.keys, self.offsets = keys[order], offsets[order]
        if (outside := (self.offsets % 4 != 0) | (self.offsets >= self._size)).any():
            key, offset = self.keys[outside][0], self.offsets[outside][0]
            raise RecordIOError(
                f"{self.index_path}: key {key} points at offset {offset}, where no record of {self.path} "
                f"({self._size} bytes) can begin; the files do not belong together, or one is truncated: run verify"
            )
        by_key = np.argsort(self.keys, kind="stable")
        sorted_keys = self.keys[by_key]
        if (twice := sorted_keys[1:] == sorted_keys[:-1]).any():
            raise RecordIOError(f"{self.index_path}: key {sorted_keys[1:][twice][0]} stands there twice; run verify")
        # Keys are nearly always 0..N: then a table indexed by the key finds a record fastest. A dictionary would cost
        # gigabytes at millions of records, once per worker.
        self._dense = bool(len(keys)) and int(sorted_keys[-1]) < 4 * len(keys) + 1024
        if self._dense:
            table = np.full(int(sorted_keys[-1]) + 1, -1, np.int64)
            table[self.keys] = self.offsets
            self._table = memoryview(table)
        else:
            self._sorted_keys, self._table = memoryview(sorted_keys), memoryview(self.offsets[by_key].copy())

    def _infer_label_width(self) -> int:
        return infer_label_width(self.read_raw(0)) if 0 in self else 4

    def _find(self, key: int) -> int:
        if self._dense:
            return self._table[key] if 0 <= key < len(self._table) else -1
        place = bisect_left(self._sorted_keys, key)
        return self._table[place] if place < len(self._table) and self._sorted_keys[place] == key else -1

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        return self._find(key) >= 0

    @property
    def view(self) -> memoryview:
        """All bytes of the file."""
        if self._view is None:
            raise RecordIOError(f"{self.path}: the reader is closed")
        return self._view

    def offset(self, key: int) -> int:
        """Where the record begins; raises RecordIOError for a key that the index does not hold."""
        offset = self._find(key)
        if offset < 0:
            raise RecordIOError(f"{self.path}: no record has key {key}")
        return offset

    def read(self, key: int) -> Record:
        """Header and payload of one record. The payload is a view of the file, or new memory for a record in parts.

        Raises RecordIOError naming the key and what is wrong.
        """
        # The common case, one whole record with a plain label, is spelt out here: it is the loader's inner loop.
        try:
            offset = self._table[key] if self._dense and key >= 0 else self._find(key)
            magic, length, flag, label, id, id2 = FRAMED_HEADER_AT(self._view, offset)
        except (IndexError, TypeError, struct.error):  # an unknown key, a closed reader, a record at the very end
            return self._read_checked(key)
        end = offset + 8 + length
        # A part code other than 'whole' makes `length` exceed MAX_LENGTH: one test tells both.
        if magic != MAGIC or flag or not HEADER.size <= length <= MAX_LENGTH or end > self._size or offset < 0:
            return self._read_checked(key)
        header = new_tuple(IRHeader, (flag, label, id, id2))
        return new_tuple(Record, (header, self._view[offset + FRAMED_HEADER.size : end]))

    def _read_checked(self, key: int) -> Record:
        raw = self.read_raw(key)
        try:
            return unpack(raw, self.label_width)
        except RecordIOError as error:
            raise self._damaged(key, error) from None

    def read_raw(self, key: int) -> memoryview:
        """All bytes of one record, header included. Raises RecordIOError naming the key and what is wrong."""
        view = self.view
        offset = self.offset(key)
        try:
            return read_record(view, offset)[0]
        except RecordIOError as error:
            raise self._damaged(key, error) from None

    def _damaged(self, key: int, error: RecordIOError) -> RecordIOError:
        return RecordIOError(f"{self.path}: record {key} is damaged: {error}; run verify")

    def close(self) -> None:
        """Let the map go; payloads that are still held stay valid and keep it until they are dropped."""
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
            "fingerprint": fingerprint(self.path),
        }

    def __setstate__(self, state: dict) -> None:
        self.path, self.index_path, self.label_width = state["path"], state["index_path"], state["label_width"]
        if fingerprint(self.path) != state["fingerprint"]:
            raise RecordIOError(f"{self.path}: the file has changed since its reader was made")
        self._map_file()
        self._take_index(*state["index"])
