"""Atomic file and folder writes; SHA-256 of files."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from recordio_tools.errors import UserError


@contextlib.contextmanager
def atomic_replace(path: Path, advice: str = "") -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; after the block, flushes the file to disk and renames it.

    Creates the folder. If the block fails, the temporary file is removed and `path` is unchanged. Raises UserError,
    ending with `advice`, in place of any OSError.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error, advice) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str, advice: str = "") -> None:
    """Writes UTF-8 text as by `atomic_replace`; line ends are kept."""
    with atomic_replace(path, advice) as temporary:
        temporary.write_bytes(text.encode())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder; after the block, renames it to `path`. If the block fails, removes it.

    Raises UserError if `path` exists and is not an empty folder, and in place of any OSError.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; remove it or choose another folder")
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error, "free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)


def sync(file: Path | IO) -> None:
    """Flushes a file, an open stream, or the names in a folder to disk. Raises OSError."""
    if not isinstance(file, Path):
        file.flush()
        os.fsync(file.fileno())
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, read in blocks. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _temporary(path: Path) -> Path:
    """A unique name in the same folder, so that the rename stays within one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not supported by every file system
        sync(folder)


def _write_error(path: Path, error: OSError, advice: str) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}{advice and f'; {advice}'}")
