"""Atomic file and folder writes; SHA-256 of files."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from recordio_tools.bounded_io import regular_file_exists
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
def atomic_folder(path: Path, overwrite: bool | None = None, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yields a new temporary folder next to `path`; after the block, renames it to `path`, after an error removes it.

    With `overwrite` a folder that holds files is replaced whole: it stays as it is until the new one is complete, and
    the two are swapped. None is for callers without such an option. The folder of an earlier call that was killed is
    removed first.

    Raises UserError if `path` is no folder, is or contains the working folder or one of the `sources`, or holds files
    and is not to be overwritten; and in place of any OSError.
    """
    target = path.resolve()  # the folder itself, if `path` is a link
    temporary = lock = None
    try:
        _remove_leftovers(target)
        _check_target(path, target, overwrite, sources)
        temporary = _temporary(target)
        temporary.mkdir(parents=True)
        lock = _lock(temporary)
        with _named_errors(temporary, path):
            yield temporary
        replace_folder(temporary, target, bool(overwrite))
    except OSError as error:
        raise _write_error(path, error, "free some space or choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # after a swap, the folder that was replaced
        if lock is not None:
            os.close(lock)
    _sync_folder(target.parent)


def _check_target(path: Path, target: Path, overwrite: bool | None, sources: Iterable[Path]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{path}: is not a folder; choose another name")
    for source in sources:
        if source.resolve().is_relative_to(target):
            raise UserError(f"{path}: holds the source {source}; choose another folder")
    with contextlib.suppress(FileNotFoundError):  # of a working folder that was removed
        if Path.cwd().is_relative_to(target):
            raise UserError(f"{path}: is or contains the working folder; choose a new folder in it")
    if not overwrite and any(target.iterdir()):
        remedy = "remove it or choose another folder"
        if overwrite is not None:
            remedy = "choose another folder, or replace this one with --overwrite"
        raise UserError(f"{path}: exists already and is not empty; {remedy}")


def _remove_leftovers(target: Path) -> None:
    """Removes temporary folders of `target` whose process has ended, and restores `target` from a swap cut short."""
    if not target.parent.is_dir():
        return
    name = re.compile(re.escape(f".{target.name}.") + r"\d+\.[0-9a-f]{8}\.(partial|previous)")
    for folder in sorted(target.parent.iterdir()):
        match = name.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir() or (lock := _lock(folder)) is None:
            continue
        try:
            if match[1] == "previous" and not target.exists():
                folder.rename(target)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder until the descriptor is closed or the process ends; None if another process holds the lock."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # of another user
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also on file systems without locks, where leftovers then stay
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _named_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Makes errors name `path` in place of the temporary folder, and a source that cannot be read itself."""
    try:
        yield
    except UserError as error:
        if str(temporary) not in str(error):
            raise
        raise type(error)(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        if not isinstance(error.filename, str | bytes) or os.fsdecode(error.filename).startswith(str(temporary)):
            raise
        raise UserError(f"{os.fsdecode(error.filename)}: {error.strerror}") from error


def replace_folder(temporary: Path, target: Path, overwrite: bool) -> None:
    """Renames `temporary` to `target`; a folder with files in its place is at `temporary` afterwards.

    Raises OSError for such a folder without `overwrite`: another process has written it in the meantime.
    """
    if not (overwrite and target.is_dir() and any(target.iterdir())):
        temporary.replace(target)
    elif not _exchange(temporary, target):
        # Killed between the two renames, the next call puts the previous folder back.
        previous = temporary.with_suffix(".previous")
        target.rename(previous)
        try:
            temporary.rename(target)
        except OSError:
            previous.rename(target)
            raise
        previous.rename(temporary)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step with Linux's renameat2; returns False if system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


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
    regular_file_exists(path)
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
