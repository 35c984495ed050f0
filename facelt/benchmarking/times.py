"""Run times of a benchmark run: the seconds of its sessions, and the minutes of each stage that it trained."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facelt.errors import UserError
from recordio_tools.atomic_io import write_text
from recordio_tools.bounded_io import read_json

SESSIONS_FILE, _STAGES_FILE = "sessions.json", "stage_minutes.json"


@contextmanager
def timed_session(path: Path) -> Iterator[Callable[[], float | None]]:
    """Appends the seconds of the block to the file, also after an exception or a signal.

    Yields a function that returns the minutes of all sessions, of this one so far; None if one of them was killed. A
    killed process leaves an unfinished session (null) in the file.
    """
    earlier = _read_sessions(path)
    write_text(path, json.dumps([*earlier, None]))
    start = time.perf_counter()
    seconds = None

    def total_minutes() -> float | None:
        own = time.perf_counter() - start if seconds is None else seconds
        return None if None in earlier else (sum(earlier) + own) / 60

    try:
        yield total_minutes
    finally:
        seconds = time.perf_counter() - start
        write_text(path, json.dumps([*earlier, seconds]))


def record_stage(run: Path, stage: str, minutes: float | None) -> None:
    """Records the minutes of a stage that is finished after `minutes` of the run, those of earlier stages included."""
    known = _read_stages(run)
    earlier = [value for name, value in known.items() if name != stage]
    known[stage] = None if minutes is None or None in earlier else max(minutes - sum(earlier), 0.0)
    write_text(run / _STAGES_FILE, json.dumps(known) + "\n")


def stage_minutes(run: Path, stage: str) -> float | None:
    """Returns the minutes that the run trained this stage for; None if they were not recorded."""
    return _read_stages(run).get(stage)


def _read_sessions(path: Path) -> list[float | None]:
    return _read_times(path, list)


def _read_stages(run: Path) -> dict[str, float | None]:
    return _read_times(run / _STAGES_FILE, dict)


def _read_times(path: Path, kind: type[list] | type[dict]) -> Any:
    """Reads a list of times, or times by name; none if there is no file. Raises UserError for anything else."""
    if not path.exists():
        return kind()
    try:
        values = read_json(path)
        times = values.values() if isinstance(values, dict) else values
        if not isinstance(values, kind) or not all(value is None or type(value) in (int, float) for value in times):
            raise ValueError("not the times of a run")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); remove it") from None
    return values
