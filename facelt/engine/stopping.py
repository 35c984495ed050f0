"""A run that is asked to stop by a signal stops between two steps, with its state saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Raised by all ranks at the same step once one of them was asked to stop."""


_asked = threading.Event()


def is_asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT are noted here instead of ending the process; a second one ends it as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, _) -> None:
        _asked.set()
        signal.signal(number, before[number])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
