"""Walk a file and name every damaged record: framing, header, image, index, labels and identity ranges."""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from recordio_tools.cross_checks import index_damage, label_damage, range_damage
from recordio_tools.damage import Damage, RecordTable, Report
from recordio_tools.errors import RecordIOError
from recordio_tools.face_layout import read_property
from recordio_tools.header import HEADER, Record, unpack
from recordio_tools.header_scan import Progress
from recordio_tools.image import MAX_PIXELS, decode_whole
from recordio_tools.index import read_index
from recordio_tools.reader import RecordReader, map_file
from recordio_tools.record_walk import Step, walk_records

BATCH = 256  # records that wait for the decoding threads at a time
Checked = tuple[Step, Record | None, str | None]


def verify(
    path: str | Path,
    index_path: str | Path | None = None,
    decode_images: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
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
        if progress and len(walked) % BATCH == 0:
            progress(step.offset, len(view))
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
