"""Caches of values that take a scan of the record file: location, stamp of the file and digest of the values.

A cache is one .npy of int64 [1 + R, N]. The first row holds the stamp (version of this format, then size and
modification time in ns of each file it was made from), the number of values in a row and a SHA-256 of both and the
values; R rows of values follow. A stale, foreign, changed or unreadable cache is ignored and replaced; if it cannot be
written (a read-only folder), the values are computed again the next time.

Caches are next to the record file, or all in one folder: an argument `folder`, or else the variable FACELT_CACHE.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recordio_tools.atomic_io import atomic_replace
from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.errors import RecordIOError, UserError

_VERSION = 2
_DIGEST_WORDS = 4  # int64 of a SHA-256
_VARIABLE = "FACELT_CACHE"


def cache_path(record: Path, values: str, folder: Path | None = None) -> Path:
    """Returns the path of the cache of some `values` of a record file, such as train.rec.labels.npy.

    In a common folder, part of a hash of the record's path keeps files of one name apart.
    """
    folder = folder or os.environ.get(_VARIABLE)
    if not folder:
        return record.with_name(f"{record.name}.{values}.npy")
    digest = hashlib.sha256(os.fsencode(record.resolve())).hexdigest()[:16]
    return Path(folder, f"{record.name}.{digest}.{values}.npy")


def file_stamp(*paths: Path) -> list[int]:
    """Returns the version of caches, then size and modification time in ns of each file; -1, -1 for an absent one."""
    numbers = [_VERSION]
    for path in paths:
        try:
            status = path.stat()
            numbers += [status.st_size, status.st_mtime_ns]
        except FileNotFoundError:
            numbers += [-1, -1]
    return numbers


def load_or_compute(cache: Path, stamp: list[int], rows: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns int64 [rows, N] from `cache` if it is intact and has this stamp, else from `compute`, and caches it."""
    with contextlib.suppress(RecordIOError):
        return read_cache(cache, stamp, rows)
    values = np.ascontiguousarray(compute(), dtype=np.int64)
    first_row = np.concatenate([stamp, [values.shape[1]], _digest(stamp, values)])
    table = np.zeros((1 + rows, max(values.shape[1], len(first_row))), np.int64)
    table[0, : len(first_row)] = first_row
    table[1:, : values.shape[1]] = values
    with contextlib.suppress(OSError, UserError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        # A folder without any write bit stays unchanged even if the superuser could write.
        if cache.parent.stat().st_mode & 0o222:
            with atomic_replace(cache) as temporary, temporary.open("wb") as stream:
                np.save(stream, table, allow_pickle=False)
    return values


def read_cache(cache: Path, stamp: list[int], rows: int) -> np.ndarray:
    """Returns the values of a cache, int64 [rows, N].

    Raises RecordIOError: absent, not a cache, made from other files than those of `stamp`, or changed since.
    """
    if not regular_file_exists(cache):
        raise RecordIOError(f"{cache}: no such file")
    try:
        with cache.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
        # The header of a later version may claim four gigabytes for itself, which NumPy would allocate.
        table = np.load(cache, mmap_mode="r", allow_pickle=False) if version == (1, 0) else None
    except (OSError, ValueError, OverflowError, EOFError):
        table = None
    first = len(stamp) + 1 + _DIGEST_WORDS
    if (
        not isinstance(table, np.ndarray)
        or (table.dtype, table.ndim) != (np.int64, 2)
        or table.shape[0] != 1 + rows
        or table.shape[1] < first
        or not 0 <= table[0, len(stamp)] <= table.shape[1]
    ):
        raise RecordIOError(f"{cache}: is not a cache of record values; delete it")
    if table[0, : len(stamp)].tolist() != stamp:
        raise RecordIOError(f"{cache}: was made from another version of the record or its index; delete it")
    values = np.array(table[1:, : table[0, len(stamp)]])
    if not np.array_equal(table[0, len(stamp) + 1 : first], _digest(stamp, values)):
        raise RecordIOError(f"{cache}: its values were changed after it was made; delete it")
    return values


def _digest(stamp: list[int], values: np.ndarray) -> np.ndarray:
    """The SHA-256 of stamp and values as int64 [4]."""
    digest = hashlib.sha256(np.array([*stamp, *values.shape], "<i8").tobytes())
    digest.update(np.ascontiguousarray(values, "<i8"))
    return np.frombuffer(digest.digest(), np.int64)
