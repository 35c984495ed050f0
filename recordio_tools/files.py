"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
