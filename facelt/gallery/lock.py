"""One writer at a time, known to the second one by its process number."""

import fcntl
import os
from pathlib import Path

from facelt.errors import UserError


class WriterLock:
    """An advisory lock on a file that the system releases when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._handle is not None

    def try_acquire(self) -> bool:
        """Takes the lock if nobody else has it. Raises UserError where the file cannot be opened."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror}); only its owner can write") from error
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
        """Takes the lock. Raises UserError, naming the other writer, where it is taken."""
        if not self.try_acquire():
            raise UserError(
                f"{self.path.parent}: process {self._holder()} is writing to this gallery; "
                "try again when it has finished (identify can be used meanwhile)"
            )

    def release(self) -> None:
        """Lets it go."""
        if self._handle is not None:
            # A process that was forked meanwhile has the file open as well, and would keep the lock.
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None

    def _holder(self) -> str:
        try:
            text = self.path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            text = ""
        return text if text.isdigit() else "unknown"
