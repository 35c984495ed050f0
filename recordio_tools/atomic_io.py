"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from recordio_tools.errors import RecordIOError


def temporary_beside(path: Path) -> Path:
    """A name of its own in the same folder, so that the rename stays within one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def flush(stream: BinaryIO) -> None:
    """Push everything written so far onto the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder last; file systems that cannot are left as they are."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes `path` when the block ends well, and vanishes when it does not."""
    partial = temporary_beside(path)
    try:
        with partial.open("xb") as stream:
            yield stream
            flush(stream)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically, UTF-8."""
    with atomic(path) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` when the block ends well, and vanishes when it does not.

    Raises RecordIOError where `path` already holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RecordIOError(f"{path}: already there and not empty; choose another folder for --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_beside(path)
    partial.mkdir()
    try:
        yield partial
        if path.is_dir():
            path.rmdir()
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(path.parent)
