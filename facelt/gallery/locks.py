"""Locks of a local gallery: one writing process, one thread at a time, no forked process."""

import fcntl
import os
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from facelt.errors import UserError


class WriterLock:
    """Advisory file lock, released by the system when its holder exits or is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """True if this object holds the lock."""
        return self._handle is not None

    def try_acquire(self) -> bool:
        """Takes the lock if it is free; returns whether it did. Raises UserError if the file cannot be opened."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be opened ({error.strerror}); only its owner can write to the gallery"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return True

    def acquire(self) -> None:
        """Takes the lock. Raises UserError naming the process that holds it."""
        if not self.try_acquire():
            raise UserError(
                f"{self.path.parent}: process {self._holder()} is writing to this gallery; "
                "try again when it has finished (identify works meanwhile)"
            )

    def release(self) -> None:
        """Releases the lock."""
        if self._handle is not None:
            # Unlocked explicitly: a forked process has the file open as well and would keep the lock.
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None

    def _holder(self) -> str:
        try:
            text = self.path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            text = ""
        return text if text.isdigit() else "unknown"


class ThreadGuard:
    """Serialises threads and refuses forked processes, in which an open SQLite connection must not be used."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    @property
    def is_forked(self) -> bool:
        """True in another process than the one that created this object."""
        return os.getpid() != self._process

    def lock(self, path: Path) -> threading.RLock:
        """Returns the lock for a `with` block. Raises UserError, naming `path`, in a forked process."""
        if self.is_forked:
            raise UserError(f"{path}: opened by process {self._process}; open it again in the forked process")
        return self._lock


def synchronized(method: Callable) -> Callable:
    """Decorates a method of an object with `path` and `guard`: one thread at a time, not in forked processes."""

    @wraps(method)
    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.guard.lock(self.path):
            return method(self, *arguments, **options)

    return guarded
