"""How long a run took in all, over every time it was taken up."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facelt.whole_files import write_text


@contextmanager
def sitting(path: Path) -> Iterator[None]:
    """Adds the block's seconds to those in the file, also where it ends by a mistake or by a signal.

    A process that is killed cannot: the file then says that a sitting was never closed, and the sum stays unknown.
    """
    earlier = _read(path)
    write_text(path, json.dumps([*earlier, None]))
    began = time.perf_counter()
    try:
        yield
    finally:
        write_text(path, json.dumps([*earlier, time.perf_counter() - began]))


def minutes(path: Path) -> float | None:
    """The sum of all sittings; None where one of them was never closed."""
    seconds = _read(path)
    return None if None in seconds else sum(seconds) / 60


def _read(path: Path) -> list[float | None]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
