"""Progress callback of long loops, and the progress bars that display it.

A loop reports counts under a label: `progress(label, done, total)`. Messages do not pass through the callback:
functions return them, and commands print them.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ProgressFn = Callable[[str, int, int], None]
_Item = TypeVar("_Item")

REFRESH_SECONDS = 0.1  # least time between two updates of one bar


def no_progress(label: str, done: int, total: int) -> None:
    """Ignores the report: the default of every `progress` argument."""


def track(items: Iterable[_Item], label: str, total: int, progress: ProgressFn) -> Iterator[_Item]:
    """Yields `items`; reports each one when the next is requested, that is, when the caller has finished with it."""
    for done, item in enumerate(items, start=1):
        yield item
        progress(label, done, total)


def relabel(progress: ProgressFn, label: str) -> ProgressFn:
    """Returns a callback that reports under `label`, whatever label the loop that receives it uses."""
    return lambda _, done, total: progress(label, done, total)


@contextlib.contextmanager
def progress_bars(enabled: bool = True) -> Iterator[ProgressFn]:
    """Yields a callback that draws one bar per label on stderr; bars disappear when the block ends.

    Nothing is drawn unless `enabled` and stderr is a terminal. Text printed inside the block appears above the bars.
    """
    if not (enabled and sys.stderr.isatty()):
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks, updated = {}, {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            elif done < total and time.monotonic() - updated[label] < REFRESH_SECONDS:
                return
            updated[label] = time.monotonic()
            bars.update(tasks[label], completed=done, total=total)

        yield report
