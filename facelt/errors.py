"""Exceptions that every command turns into one line and an exit code: wrong input, and a stop signal."""

# UserError is defined in recordio_tools, whose errors are caught as the same class.
from recordio_tools.errors import UserError

__all__ = ["Interrupted", "UserError"]


class Interrupted(Exception):
    """A stop by SIGINT or SIGTERM, after saving; raised on all ranks at the same step if several work together.

    The message says how to continue. Commands print it and exit with 128 + `signal_number`, as the shell does.
    """

    def __init__(self, signal_number: int, advice: str = "run the same command again") -> None:
        super().__init__(f"interrupted; {advice}")
        self.signal_number = signal_number
