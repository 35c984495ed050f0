"""Erasure of the free space in an SQLite file: zeros in all bytes of its pages that hold no content.

SQLite's secure_delete overwrites deleted rows and freed pages, but not the copies that stay in the free space of a page
when rows move to another one, as pages are split and merged. Free space has no meaning to SQLite, so zeros may be
written to the file directly, and a crash while doing so damages nothing. File format:
https://www.sqlite.org/fileformat2.html

F frames of a log, B bytes of a frame.
"""

import os
import struct
import threading
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATABASE_MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
# Flag of a b-tree page -> bytes of its header: interior pages of indexes and tables, leaf pages of both.
BTREE_HEADER_BYTES = {2: 12, 5: 12, 10: 8, 13: 8}
# An overflow page starts with the number of a page: below this number its first byte is no flag of a b-tree page.
MAX_PAGES = 1 << 25
# Pages read at once.
BLOCK_PAGES = 256
# Log: bytes of its header and of the header of a frame, which starts with the number of a page.
LOG_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24

_descriptors: dict[tuple[int, int], list[int]] = {}
_descriptors_lock = threading.Lock()


class SharedDescriptor:
    """Descriptor of a file, one for all objects of the process that have it open.

    Closing any descriptor of a file drops all POSIX locks of the process on it, also those of SQLite's connections.
    This one is closed with the last object, so each connection of the process needs one, closed after it.
    """

    def __init__(self, path: Path) -> None:
        with _descriptors_lock:
            status = path.stat()
            self._key = status.st_dev, status.st_ino
            if self._key not in _descriptors:
                _descriptors[self._key] = [_open(path), 0]
            self.number = _descriptors[self._key][0]
            _descriptors[self._key][1] += 1
        self._is_open = True

    def close(self) -> None:
        with _descriptors_lock:
            if not self._is_open:
                return
            self._is_open = False
            _descriptors[self._key][1] -= 1
            if not _descriptors[self._key][1]:
                os.close(_descriptors.pop(self._key)[0])


def logged_pages(log: Path) -> set[int]:
    """Returns the numbers of the pages in a write-ahead log, also of frames that are no longer valid."""
    with log.open("rb") as file:
        header = file.read(LOG_HEADER_BYTES)
    if len(header) < LOG_HEADER_BYTES:
        return set()
    (page_bytes,) = struct.unpack_from(">I", header, 8)
    stride = FRAME_HEADER_BYTES + page_bytes
    frames = (log.stat().st_size - LOG_HEADER_BYTES) // stride
    if frames < 1:
        return set()
    frame_FB = np.memmap(log, np.uint8, "r", LOG_HEADER_BYTES, shape=(frames, stride))
    return set(np.unique(frame_FB[:, :4].copy().view(">u4")).tolist())


def zero_free_space(descriptor: int, pages: set[int] | None = None) -> int:
    """Writes zeros to the free space of pages, by default of all, and returns the number of bytes that were not zero.

    The log must be empty, and no program may write to the file meanwhile. Raises ValueError if a page is damaged.
    """
    header = os.pread(descriptor, HEADER_BYTES, 0)
    if len(header) < HEADER_BYTES or not header.startswith(DATABASE_MAGIC):
        raise ValueError("its header is not that of a database")
    (page_bytes,) = struct.unpack_from(">H", header, 16)
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    usable = page_bytes - header[20]
    if page_bytes < 512 or usable < 480:
        raise ValueError(f"it has pages of {page_bytes} bytes")
    count = os.fstat(descriptor).st_size // page_bytes
    if count >= MAX_PAGES or any(header[52:56]):
        raise ValueError("the kinds of its pages are unknown: it is too large, or auto_vacuum is on")
    free = _freelist(descriptor, header, page_bytes, count)
    numbers = np.arange(1, count + 1) if pages is None else np.array(sorted(pages), dtype=np.int64)
    zeroed = 0
    for number, content in _contents(descriptor, numbers[numbers <= count], page_bytes):
        ranges = [(free[number], page_bytes)] if number in free else _free_ranges(number, content, usable)
        for start, end in ranges:
            if content[start:end] != bytes(end - start):
                os.pwrite(descriptor, bytes(end - start), (number - 1) * page_bytes + start)
                zeroed += end - start
    os.fsync(descriptor)
    return zeroed


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:  # a reader's
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _freelist(descriptor: int, header: bytes, page_bytes: int, count: int) -> dict[int, int]:
    """Returns the freed pages by number, with the offset from which each of them is free."""
    free: dict[int, int] = {}
    (trunk,) = struct.unpack_from(">I", header, 32)
    while trunk:
        if trunk > count or trunk in free:
            raise ValueError(f"page {trunk} cannot be a part of its list of free pages")
        content = os.pread(descriptor, page_bytes, (trunk - 1) * page_bytes)
        following, leaves = struct.unpack_from(">II", content)
        if 8 + 4 * leaves > page_bytes:
            raise ValueError(f"page {trunk} lists {leaves} free pages")
        free[trunk] = 8 + 4 * leaves
        free |= dict.fromkeys(struct.unpack_from(f">{leaves}I", content, 8), 0)
        trunk = following
    return free


def _contents(descriptor: int, numbers: np.ndarray, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields number and content of pages, reading successive ones together."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        for part in np.split(run, range(BLOCK_PAGES, len(run), BLOCK_PAGES)):
            if not len(part):
                continue
            block = os.pread(descriptor, len(part) * page_bytes, int(part[0] - 1) * page_bytes)
            for index, number in enumerate(part.tolist()):
                content = block[index * page_bytes : (index + 1) * page_bytes]
                if len(content) < page_bytes:
                    raise ValueError(f"page {number} is missing")
                yield number, content


def _free_ranges(number: int, content: bytes, usable: int) -> list[tuple[int, int]]:
    """Returns the free bytes of a page that is not in the freelist as start and end of ranges."""
    base = HEADER_BYTES if number == 1 else 0
    kind = content[base]
    if kind == 0:
        # An overflow page, which SQLite fills from zeros, or the page at the lock bytes.
        return []
    if kind not in BTREE_HEADER_BYTES:
        raise ValueError(f"page {number} is of no known kind")
    block, cells, first = struct.unpack_from(">HHH", content, base + 1)
    first, start = first or 65536, base + BTREE_HEADER_BYTES[kind]
    end = start + 2 * cells
    if not end <= first <= usable:
        raise ValueError(f"page {number} has overlapping cells")
    pointers = sorted(struct.unpack_from(f">{cells}H", content, start))
    if cells and not first <= pointers[0] <= pointers[-1] < usable:
        raise ValueError(f"page {number} has a cell outside its content")
    ranges = [(end, first)]
    while block:
        if not first <= block <= usable - 4:
            raise ValueError(f"page {number} has a free block outside its content")
        following, size = struct.unpack_from(">HH", content, block)
        stop = block + size
        has_cell = bisect_left(pointers, block) < bisect_left(pointers, stop)
        if size < 4 or stop > usable or 0 < following < stop or has_cell:
            raise ValueError(f"page {number} has overlapping free blocks")
        ranges.append((block + 4, stop))
        block = following
    return ranges
