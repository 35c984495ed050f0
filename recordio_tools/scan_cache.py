"""What one pass over a file found, kept beside it so that the next start needs no pass.

A cache is one .npy of int64 [1 + R, N]: its first row begins with the fingerprints (size, modification time in ns) of
the files it was made from, and R rows of values follow. A stale, foreign or unreadable cache is ignored; one that
cannot be written (a read-only folder) is not kept; the caller has its values all the same.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recordio_tools.files import atomic

FORMAT = 1


def fingerprint(*paths: Path) -> list[int]:
    """Format, then size and modification time in ns of each file; -1, -1 for one that is absent."""
    numbers = [FORMAT]
    for path in paths:
        try:
            status = path.stat()
            numbers += [status.st_size, status.st_mtime_ns]
        except FileNotFoundError:
            numbers += [-1, -1]
    return numbers


def cached(cache: Path, mark: list[int], rows: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The int64 [rows, N] of `compute`, from `cache` where its fingerprint is `mark`."""
    kept = _load(cache, mark, rows)
    if kept is not None:
        return kept
    values = np.ascontiguousarray(compute(), dtype=np.int64)
    table = np.zeros((1 + rows, max(values.shape[1], len(mark) + 1)), np.int64)
    table[0, : len(mark)] = mark
    table[0, len(mark)] = values.shape[1]
    table[1:, : values.shape[1]] = values
    # A folder without any write bit is meant to stay as it is, also where the superuser could write.
    if cache.parent.stat().st_mode & 0o222:
        with contextlib.suppress(OSError), atomic(cache) as stream:
            np.save(stream, table, allow_pickle=False)
    return values


def _load(cache: Path, mark: list[int], rows: int) -> np.ndarray | None:
    try:
        table = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 2 or table.shape[0] != 1 + rows:
        return None
    if table.shape[1] <= len(mark) or table[0, : len(mark)].tolist() != mark:
        return None
    count = int(table[0, len(mark)])
    return np.array(table[1:, :count]) if 0 <= count <= table.shape[1] else None
