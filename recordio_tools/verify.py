"""What verification finds and reports.

Do index, labels and identity ranges of a file agree with its records? R records, C identities.

Walk a file and name every damaged record: framing, header, image, index, labels and identity ranges.
"""

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import read_property
from recordio_tools.format import EXACT_FLOAT32, HEADER, Record, Step, unpack, walk_records
from recordio_tools.image_header import DEFAULT_MAX_PIXELS, decode_whole
from recordio_tools.progress import ProgressFn, no_progress
from recordio_tools.reader import RecordReader, map_file, read_index


class Damage(NamedTuple):
    """What is wrong with one record; the key is None where neither index nor header tells it."""

    key: int | None
    offset: int
    reason: str


class Report(NamedTuple):
    """The outcome: records met, images among them, and all damage in the order of the file."""

    path: str
    records: int
    images: int
    damages: list[Damage]


class RecordTable:
    """Keys, offsets, ids, first two labels and kind of the R readable records, in plain arrays."""

    def __init__(self) -> None:
        self._columns = {name: array(code) for name, code in zip(self.NAMES, "qqQddb", strict=True)}

    NAMES = ("key", "offset", "id", "label", "second_label", "bare")
    DTYPES = ("i8", "i8", "u8", "f8", "f8", "i1")

    def add(self, key: int | None, offset: int, record: Record) -> None:
        """Append one record; a key of None is kept as -1."""
        labels = np.ravel(record.header.label)
        second = labels[1] if len(labels) > 1 else 0.0
        bare = record.header.flag == 2 and not len(record.payload)
        row = (-1 if key is None else key, offset, record.header.id, labels[0], second, bare)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns by name, [R] each."""
        columns = zip(self._columns.items(), self.DTYPES, strict=True)
        return {name: np.array(column, dtype=dtype) for (name, column), dtype in columns}


def index_damage(
    keys: np.ndarray, offsets: np.ndarray, walked: np.ndarray, records: dict[str, np.ndarray]
) -> Iterator[Damage]:
    """Entries of the index (int64 [N]) that lead nowhere or twice to one place, and records that it misses.

    `walked` is the offsets of all records met, damaged ones too.
    """
    for row in np.flatnonzero(~np.isin(offsets, walked)):
        yield Damage(int(keys[row]), int(offsets[row]), "the index points here, where no record begins")
    for values, reason in ((keys, "its key stands twice in the index"), (offsets, "two keys of the index share it")):
        unique, count = np.unique(values, return_counts=True)
        for row in np.flatnonzero(np.isin(values, unique[count > 1])):
            yield Damage(int(keys[row]), int(offsets[row]), reason)
    for offset in np.setdiff1d(walked, offsets).tolist():
        yield Damage(None, offset, "the index does not name this record")
    # Writers of face sets store the key as the header's id too. Where a file does so, a record whose id is another key
    # is one that the index confuses.
    other = records["id"].astype(np.int64) != records["key"]
    if np.count_nonzero(other) * 2 < len(other):
        for row in np.flatnonzero(other & (records["key"] >= 0)):
            reason = f"the index calls it {records['key'][row]}, its header {records['id'][row]}"
            yield Damage(int(records["key"][row]), int(records["offset"][row]), reason)


def label_damage(records: dict[str, np.ndarray], identities: int | None) -> Iterator[Damage]:
    """Labels that are no number; and, where `property` declares the identities, those that are none of them."""
    label_R = records["label"]
    wrong_R = ~np.isfinite(label_R)
    if identities is not None:
        wrong_R |= (records["bare"] == 0) & ~((label_R >= 0) & (label_R < identities) & (label_R == np.floor(label_R)))
    limit = "" if identities is None else f" (property declares {identities} identities)"
    for row in np.flatnonzero(wrong_R):
        yield _damage(records, row, f"its label is {label_R[row]:g}{limit}")


def range_damage(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Damage]:
    """Identity records whose range names images that are absent or of several labels, and a record 0 that misses them.

    `unreadable` is the keys of damaged records: they are there, and named already. Ranges that reach 2^24 are left
    alone: float32 rounds them, and no reader should trust them.
    """
    image_R = records["bare"] == 0
    order = np.argsort(records["key"][image_R], kind="stable")
    image_keys, image_labels = records["key"][image_R][order], records["label"][image_R][order]
    changes = np.concatenate([[0], np.cumsum(image_labels[1:] != image_labels[:-1])])
    identity_rows = np.flatnonzero(~image_R & (records["key"] != 0) & (records["second_label"] < EXACT_FLOAT32))
    start_C, end_C = records["label"][identity_rows], records["second_label"][identity_rows]
    first_C, past_C = np.searchsorted(image_keys, start_C), np.searchsorted(image_keys, end_C)
    there = np.sort(np.concatenate([image_keys, unreadable]))
    there_C = np.searchsorted(there, end_C) - np.searchsorted(there, start_C)
    absent_C = (end_C < start_C) | (there_C != end_C - start_C)
    mixed_C = np.zeros(len(identity_rows), bool)
    used_C = ~absent_C & (past_C > first_C)
    mixed_C[used_C] = changes[past_C[used_C] - 1] != changes[first_C[used_C]]
    for bad_C, reason in ((absent_C, "names images that are not there"), (mixed_C, "holds images of several labels")):
        for identity in np.flatnonzero(bad_C):
            bounds = f"{start_C[identity]:.0f}..{end_C[identity] - 1:.0f}"
            yield _damage(records, identity_rows[identity], f"its range {bounds} {reason}")
    yield from _record_0_damage(records, unreadable)


def _record_0_damage(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Damage]:
    bare_R = records["bare"] != 0
    identity_keys = records["key"][bare_R & (records["key"] > 0)]
    exact_R = (records["label"] >= 0) & (records["second_label"] < EXACT_FLOAT32)
    for row in np.flatnonzero(bare_R & exact_R & (records["key"] == 0)):
        stated = (records["label"][row], records["second_label"][row])
        missing = np.setdiff1d(np.arange(*stated), np.concatenate([identity_keys, unreadable]))
        beyond = identity_keys[(identity_keys < stated[0]) | (identity_keys >= stated[1])]
        if len(missing) or len(beyond):
            key = int(missing[0] if len(missing) else beyond[0])
            reason = f"it places the identities at {stated[0]:.0f}..{stated[1] - 1:.0f}, which is wrong for key {key}"
            yield _damage(records, row, reason)


def _damage(records: dict[str, np.ndarray], row: int, reason: str) -> Damage:
    key = int(records["key"][row])
    return Damage(None if key < 0 else key, int(records["offset"][row]), reason)


BATCH = 256  # records that wait for the decoding threads at a time
Checked = tuple[Step, Record | None, str | None]


def verify(
    path: str | Path,
    index_path: str | Path | None = None,
    decode_images: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: ProgressFn = no_progress,
) -> Report:
    """Check every record of `path`.

    Damage is reported, not raised; RecordIOError means that there is no file to check.
    """
    path = Path(path)
    index_path = Path(index_path) if index_path else path.with_suffix(".idx")
    view = memoryview(map_file(path))
    damages: list[Damage] = []
    keys, offsets = _index(index_path, damages)
    declared = _declared(path.with_name("property"), damages)
    size = declared[1:] if declared else None
    check = _checker(_label_width(path, index_path), size, max_pixels if decode_images else None)
    table, walked = RecordTable(), []
    key_of = _key_finder(keys, offsets)
    for step, record, reason in _check_all(walk_records(view, memoryview(np.unique(offsets))), check):
        key = key_of(step.offset, record)
        walked.append(step.offset)
        if record is not None:
            table.add(key, step.offset, record)
        if reason is not None:
            damages.append(Damage(key, step.offset, reason))
        progress("verifying", step.offset, len(view))
    records = table.arrays()
    damages += index_damage(keys, offsets, np.array(walked, np.int64), records) if len(keys) else []
    unreadable = np.setdiff1d([damage.key for damage in damages if damage.key is not None], records["key"])
    damages += label_damage(records, declared[0] if declared else None)
    damages += range_damage(records, unreadable.astype(np.int64))
    images = int(np.count_nonzero(records["bare"] == 0))
    return Report(
        str(path), len(walked), images, sorted(set(damages), key=lambda damage: (damage.offset, damage.reason))
    )


def _index(path: Path, damages: list[Damage]) -> tuple[np.ndarray, np.ndarray]:
    if path.is_file():
        try:
            return read_index(path)
        except RecordIOError as error:
            damages.append(Damage(None, 0, str(error)))
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _declared(path: Path, damages: list[Damage]) -> tuple[int, int, int] | None:
    if path.is_file():
        try:
            return read_property(path)
        except RecordIOError as error:
            damages.append(Damage(None, 0, str(error)))
    return None


def _label_width(path: Path, index_path: Path) -> int:
    try:
        with RecordReader(path, index_path if index_path.is_file() else None) as reader:
            return reader.label_width
    except RecordIOError:  # damage that is about to be named
        return 4


def _key_finder(keys: np.ndarray, offsets: np.ndarray) -> Callable[[int, Record | None], int | None]:
    """Key of the record at an offset: from the index, or, where there is none, the header's id."""
    order = np.argsort(offsets, kind="stable")
    sorted_keys, sorted_offsets = memoryview(keys[order]), memoryview(offsets[order])

    def find(offset: int, record: Record | None) -> int | None:
        place = bisect_left(sorted_offsets, offset)
        if place < len(sorted_offsets) and sorted_offsets[place] == offset:
            return sorted_keys[place]
        if len(keys) or record is None or record.header.id >= 1 << 63:
            return None
        return record.header.id

    return find


def _check_all(steps: Iterable[Step], check: Callable[[Step], Checked]) -> Iterator[Checked]:
    steps = iter(steps)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        while batch := list(islice(steps, BATCH)):
            yield from pool.map(check, batch)


def _checker(label_width: int, size: tuple[int, int] | None, max_pixels: int | None) -> Callable[[Step], Checked]:
    """The check of one record by itself: header, and the image unless `max_pixels` is None."""

    def check(step: Step) -> Checked:
        if step.record is None:
            return step, None, step.reason
        try:
            record = unpack(step.record, label_width)
        except RecordIOError as error:
            return step, None, str(error)
        bare = record.header.flag == 2 and len(step.record) == HEADER.size + 2 * label_width
        try:
            image = None if bare or max_pixels is None else decode_whole(record.payload, max_pixels)
        except RecordIOError as error:
            return step, record, str(error)
        if image is not None and size and image.shape[:2] != tuple(size):
            return step, record, f"an image of {image.shape[0]} x {image.shape[1]}, property says {size[0]} x {size[1]}"
        return step, record, None

    return check
