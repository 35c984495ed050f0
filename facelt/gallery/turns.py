"""Methods for one thread at a time, in the process that opened what they use."""

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from facelt.errors import UserError


class Turns:
    """Whose turn it is, and which process may have one: what SQLite keeps of an open file must not survive a fork."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    @property
    def is_forked(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._process

    def take(self, what: object) -> threading.RLock:
        """To be held in a `with` block. Raises UserError, naming `what`, in a forked process."""
        if self.is_forked:
            raise UserError(f"{what}: was opened by process {self._process}; a forked process opens its own")
        return self._lock


def alone(method: Callable) -> Callable:
    """A method of an object with a `path` and its `turns`."""

    @wraps(method)
    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.turns.take(self.path):
            return method(self, *arguments, **options)

    return guarded
