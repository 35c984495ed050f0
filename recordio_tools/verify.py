"""Verification of a .rec: framing, headers, images, index, labels and identity ranges of every record."""

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.cache import cache_path, file_stamp, read_cache
from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import read_property
from recordio_tools.format import HEADER_STRUCT, MAX_EXACT_FLOAT32, Record, ScannedRecord, decode_record, scan_records
from recordio_tools.image_header import DEFAULT_MAX_PIXELS, decode_whole
from recordio_tools.progress import ProgressFn, no_progress
from recordio_tools.reader import RecordReader, memory_map, read_index

_BATCH = 256  # records queued for the decoding threads at a time
_Checked = tuple[ScannedRecord, Record | None, str | None]


class Issue(NamedTuple):
    """A damaged record or a wrong entry of the index; the key is None if neither index nor header states it.

    The offset is None for an issue of a whole file, which the reason names.
    """

    key: int | None
    offset: int | None
    reason: str


class VerifyReport(NamedTuple):
    """Numbers of records and images, and the issues in file order."""

    path: str
    records: int
    images: int
    issues: list[Issue]


def verify_record_file(
    path: str | Path,
    index_path: str | Path | None = None,
    decode_images: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: ProgressFn = no_progress,
    cache: Path | None = None,
) -> VerifyReport:
    """Checks every record of `path`.

    Damage is reported, not raised; RecordIOError means that the file cannot be read at all.
    """
    path = Path(path)
    index_path = Path(index_path) if index_path else path.with_suffix(".idx")
    view = memoryview(memory_map(path))
    issues: list[Issue] = []
    # Before the record is opened, which replaces a cache that does not match.
    cached_labels = _read_caches(path, index_path, cache, issues)
    keys, offsets = _read_index(index_path, issues)
    declared = _read_property(path.with_name("property"), issues)
    size = declared[1:] if declared else None
    check = _checker(_label_width(path, index_path, cache), size, max_pixels if decode_images else None)
    table, scanned_offsets = _RecordTable(), []
    key_of = _key_finder(keys, offsets)
    for scanned, record, reason in _check_all(scan_records(view, memoryview(np.unique(offsets))), check):
        key = key_of(scanned.offset, record)
        scanned_offsets.append(scanned.offset)
        if record is not None:
            table.add(key, scanned.offset, record)
        if reason is not None:
            issues.append(Issue(key, scanned.offset, reason))
        progress("verifying", scanned.offset, len(view))
    records = table.arrays()
    issues += _index_issues(keys, offsets, np.array(scanned_offsets, np.int64), records) if len(keys) else []
    unreadable = np.setdiff1d([issue.key for issue in issues if issue.key is not None], records["key"])
    issues += _label_issues(records, declared[0] if declared else None)
    issues += _cached_label_issues(cached_labels, records)
    issues += _range_issues(records, unreadable.astype(np.int64))
    images = int(np.count_nonzero(records["bare"] == 0))
    in_order = sorted(set(issues), key=lambda issue: (-1 if issue.offset is None else issue.offset, issue.reason))
    return VerifyReport(str(path), len(scanned_offsets), images, in_order)


def _read_caches(path: Path, index_path: Path, folder: Path | None, issues: list[Issue]) -> np.ndarray:
    """Returns keys and labels of the label cache, int64 [2, N]; none if it is absent or does not match."""
    labels = np.zeros((2, 0), np.int64)
    caches = {"labels": file_stamp(path, index_path)}
    if not index_path.is_file():
        caches["index"] = file_stamp(path)
    for name, stamp in caches.items():
        cache = cache_path(path, name, folder)
        if cache.exists():
            try:
                values = read_cache(cache, stamp, 2)
                labels = values if name == "labels" else labels
            except RecordIOError as error:
                issues.append(Issue(None, None, str(error)))
    return labels


def _read_index(path: Path, issues: list[Issue]) -> tuple[np.ndarray, np.ndarray]:
    try:
        if regular_file_exists(path):
            return read_index(path)
    except RecordIOError as error:
        issues.append(Issue(None, None, str(error)))
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _read_property(path: Path, issues: list[Issue]) -> tuple[int, int, int] | None:
    try:
        if regular_file_exists(path):
            return read_property(path)
    except RecordIOError as error:
        issues.append(Issue(None, None, str(error)))
    return None


def _label_width(path: Path, index_path: Path, cache: Path | None) -> int:
    try:
        with RecordReader(path, index_path if index_path.is_file() else None, cache=cache) as reader:
            return reader.label_width
    except RecordIOError:  # reported by the scan
        return 4


def _key_finder(keys: np.ndarray, offsets: np.ndarray) -> Callable[[int, Record | None], int | None]:
    """A function that returns the key of the record at an offset: from the index, or without one the header's id."""
    order = np.argsort(offsets, kind="stable")
    sorted_keys, sorted_offsets = memoryview(keys[order]), memoryview(offsets[order])

    def find(offset: int, record: Record | None) -> int | None:
        row = bisect_left(sorted_offsets, offset)
        if row < len(sorted_offsets) and sorted_offsets[row] == offset:
            return sorted_keys[row]
        if len(keys) or record is None or record.header.id >= 1 << 63:
            return None
        return record.header.id

    return find


def _check_all(records: Iterator[ScannedRecord], check: Callable[[ScannedRecord], _Checked]) -> Iterator[_Checked]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        while batch := list(islice(records, _BATCH)):
            yield from pool.map(check, batch)


def _checker(
    label_width: int, size: tuple[int, int] | None, max_pixels: int | None
) -> Callable[[ScannedRecord], _Checked]:
    """A function that checks the header of one record, and its image unless `max_pixels` is None."""

    def check(scanned: ScannedRecord) -> _Checked:
        if scanned.record is None:
            return scanned, None, scanned.reason
        try:
            record = decode_record(scanned.record, label_width)
        except RecordIOError as error:
            return scanned, None, str(error)
        is_bare = record.header.flag == 2 and len(scanned.record) == HEADER_STRUCT.size + 2 * label_width
        try:
            image = None if is_bare or max_pixels is None else decode_whole(record.payload, max_pixels)
        except RecordIOError as error:
            return scanned, record, str(error)
        if image is not None and size and image.shape[:2] != tuple(size):
            height, width, _ = image.shape
            return scanned, record, f"an image of {height} x {width}, property states {size[0]} x {size[1]}"
        return scanned, record, None

    return check


class _RecordTable:
    """Columns of the R readable records: key, offset, id, first two labels, and whether they hold only labels."""

    def __init__(self) -> None:
        self._columns = {name: array(code) for name, code in zip(self.NAMES, "qqQddb", strict=True)}

    NAMES = ("key", "offset", "id", "label", "second_label", "bare")
    DTYPES = ("i8", "i8", "u8", "f8", "f8", "i1")

    def add(self, key: int | None, offset: int, record: Record) -> None:
        """Appends one record; a key of None becomes -1."""
        labels = np.ravel(record.header.label)
        second = labels[1] if len(labels) > 1 else 0.0
        is_bare = record.header.flag == 2 and not len(record.payload)
        row = (-1 if key is None else key, offset, record.header.id, labels[0], second, is_bare)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the columns by name, [R] each."""
        columns = zip(self._columns.items(), self.DTYPES, strict=True)
        return {name: np.array(column, dtype=dtype) for (name, column), dtype in columns}


def _index_issues(
    keys: np.ndarray, offsets: np.ndarray, scanned: np.ndarray, records: dict[str, np.ndarray]
) -> Iterator[Issue]:
    """Yields entries of the index (int64 [N]) that lead nowhere or share an offset, and records missing from it.

    `scanned` holds the offsets of all records, damaged ones too.
    """
    for row in np.flatnonzero(~np.isin(offsets, scanned)):
        yield Issue(int(keys[row]), int(offsets[row]), "the index points here, but no record begins here")
    repeated = "its key is repeated in the index", "two keys of the index share its offset"
    for values, reason in zip((keys, offsets), repeated, strict=True):
        unique, count = np.unique(values, return_counts=True)
        for row in np.flatnonzero(np.isin(values, unique[count > 1])):
            yield Issue(int(keys[row]), int(offsets[row]), reason)
    for offset in np.setdiff1d(scanned, offsets).tolist():
        yield Issue(None, offset, "the index does not hold this record")
    # Writers of face sets store the key as the id of the header too. If most records of a file do, a different id means
    # that the index swaps records.
    differs_R = records["id"].astype(np.int64) != records["key"]
    if np.count_nonzero(differs_R) * 2 < len(differs_R):
        for row in np.flatnonzero(differs_R & (records["key"] >= 0)):
            reason = f"its key is {records['key'][row]} in the index, its id {records['id'][row]} in the header"
            yield Issue(int(records["key"][row]), int(records["offset"][row]), reason)


def _label_issues(records: dict[str, np.ndarray], identities: int | None) -> Iterator[Issue]:
    """Yields labels that are not finite or, if `property` declares the number of identities, are outside of it."""
    label_R = records["label"]
    wrong_R = ~np.isfinite(label_R)
    if identities is not None:
        wrong_R |= (records["bare"] == 0) & ~((label_R >= 0) & (label_R < identities) & (label_R == np.floor(label_R)))
    limit = "" if identities is None else f" (property declares {identities} identities)"
    for row in np.flatnonzero(wrong_R):
        yield _issue(records, row, f"its label is {label_R[row]:g}{limit}")


def _cached_label_issues(cached: np.ndarray, records: dict[str, np.ndarray]) -> Iterator[Issue]:
    """Yields records whose label differs from that of the label cache, keys and labels int64 [2, N]."""
    _, row_N, cached_N = np.intersect1d(records["key"], cached[0], return_indices=True)
    for position in np.flatnonzero(records["label"][row_N] != cached[1][cached_N]):
        label = cached[1][cached_N[position]]
        reason = f"its label is {records['label'][row_N[position]]:g}, but {label} in the label cache; delete the cache"
        yield _issue(records, row_N[position], reason)


def _range_issues(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Issue]:
    """Yields identity records whose range holds absent images or several labels, and a record 0 with a wrong range.

    `unreadable` holds the keys of damaged records, which are reported already. Ranges that reach 2^24 are skipped:
    float32 rounds them, and readers must not rely on them.
    """
    image_R = records["bare"] == 0
    order = np.argsort(records["key"][image_R], kind="stable")
    image_keys, image_labels = records["key"][image_R][order], records["label"][image_R][order]
    changes = np.concatenate([[0], np.cumsum(image_labels[1:] != image_labels[:-1])])
    identity_rows = np.flatnonzero(~image_R & (records["key"] != 0) & (records["second_label"] < MAX_EXACT_FLOAT32))
    start_C, end_C = records["label"][identity_rows], records["second_label"][identity_rows]
    first_C, past_C = np.searchsorted(image_keys, start_C), np.searchsorted(image_keys, end_C)
    existing_keys = np.sort(np.concatenate([image_keys, unreadable]))
    existing_C = np.searchsorted(existing_keys, end_C) - np.searchsorted(existing_keys, start_C)
    absent_C = (end_C < start_C) | (existing_C != end_C - start_C)
    mixed_C = np.zeros(len(identity_rows), bool)
    used_C = ~absent_C & (past_C > first_C)
    mixed_C[used_C] = changes[past_C[used_C] - 1] != changes[first_C[used_C]]
    for bad_C, reason in ((absent_C, "names images that do not exist"), (mixed_C, "holds images of several labels")):
        for identity in np.flatnonzero(bad_C):
            bounds = f"{start_C[identity]:.0f}..{end_C[identity] - 1:.0f}"
            yield _issue(records, identity_rows[identity], f"its range {bounds} {reason}")
    yield from _record_0_issues(records, unreadable)


def _record_0_issues(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Issue]:
    bare_R = records["bare"] != 0
    identity_keys = records["key"][bare_R & (records["key"] > 0)]
    exact_R = (records["label"] >= 0) & (records["second_label"] < MAX_EXACT_FLOAT32)
    for row in np.flatnonzero(bare_R & exact_R & (records["key"] == 0)):
        stated = (records["label"][row], records["second_label"][row])
        existing = np.unique(np.concatenate([identity_keys, unreadable]))
        existing = existing[(existing >= stated[0]) & (existing < stated[1])]
        gaps = np.flatnonzero(existing != stated[0] + np.arange(len(existing)))
        beyond = identity_keys[(identity_keys < stated[0]) | (identity_keys >= stated[1])]
        if len(existing) < stated[1] - stated[0] or len(beyond):
            first_missing = stated[0] + (gaps[0] if len(gaps) else len(existing))
            key = int(first_missing if first_missing < stated[1] else beyond[0])
            reason = f"its range of identities {stated[0]:.0f}..{stated[1] - 1:.0f} is wrong for key {key}"
            yield _issue(records, row, reason)


def _issue(records: dict[str, np.ndarray], row: int, reason: str) -> Issue:
    key = int(records["key"][row])
    return Issue(None if key < 0 else key, int(records["offset"][row]), reason)
