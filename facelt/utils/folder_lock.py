"""Locks of output folders, so that one command at a time writes to a folder, and the check that it can be written."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from facelt.errors import UserError
from facelt.utils.cli import is_first_process, print_notice

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _close_in_child() -> None:
    """Drops the locks in a forked process, which would otherwise keep them after the death of its parent."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of an output folder, which may not exist yet, during the block; under torchrun on rank 0 only.

    The lock is a hidden file next to the folder, `.NAME.lock`. It is removed after the block; the kernel releases it if
    the process is killed. Raises UserError, with process and host of the holder, if another command has the lock, and
    if the folder cannot be written. A file system without locks gets a warning on stderr.
    """
    if not is_first_process():
        yield
        return
    require_writable(folder)
    path = folder.resolve()
    path = path.parent / f".{path.name}.lock"
    created = [parent for parent in path.parents if not parent.exists()]
    try:
        descriptor = _acquire(path, folder)
        try:
            yield
        finally:
            if descriptor is not None:
                _release(path, descriptor)
    finally:
        for parent in created:
            # Folders with content stay.
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def wait_for_folder(folder: Path) -> Iterator[None]:
    """Holds a lock on an existing folder during the block, for short changes; first waits for its other holders.

    It does not exclude the holder of `lock_folder`. A file system without locks gets a warning on stderr.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            print_notice(f"warning: {folder}: cannot be locked ({error.strerror}); run one command at a time")
        yield
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Raises UserError if files cannot be created in the folder, or if it cannot be created."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"cannot write {folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {folder}: no permission to write in {existing}; choose another folder")


def _acquire(path: Path, folder: Path) -> int | None:
    """Returns the descriptor of the locked file; None, with a warning, if the file system has no locks."""
    while True:
        descriptor = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed by its holder after it was opened here.
            is_current = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise UserError(
                f"{folder}: {holder} is writing to it; wait until it has ended, or choose another folder"
            ) from None
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
            print_notice(
                f"warning: {path}: cannot be locked ({error.strerror}); make sure that no other command writes to "
                f"{folder}"
            )
            return None
        if is_current:
            break
        os.close(descriptor)
    _held.add(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _release(path: Path, descriptor: int) -> None:
    # While the lock is held, so that a lock taken meanwhile by another process is not removed.
    path.unlink(missing_ok=True)
    _held.discard(descriptor)
    os.close(descriptor)
