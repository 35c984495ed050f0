"""Provenance of a report: date, version, command line, resolved settings, seeds and hashes of the inputs."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from facelt.errors import UserError
from recordio_tools.atomic_io import sha256_of

# Seconds since 1970 that replace the present time, for reports that are the same byte for byte.
_DATE_VARIABLE = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True)
class InputHash:
    """SHA-256 of an input, and a command line that computes it again."""

    path: str
    sha256: str
    command: str

    @classmethod
    def of_file(cls, path: Path, sha256: str | None = None) -> "InputHash":
        """Returns the hash of a file, or `sha256` if it is known. Raises UserError if the file cannot be read."""
        return cls(str(path), sha256 or sha256_of(path), f"sha256sum {shlex.quote(str(path))}")


def run_provenance(command: str, settings: Mapping[str, Any], inputs: Iterable[InputHash]) -> dict[str, Any]:
    """Returns the values of a report's key `run`.

    `command` is the subcommand, `settings` are its resolved settings as JSON values, whose keys `seed` are listed by
    their dotted names. An input given twice is listed once.

    Raises UserError if SOURCE_DATE_EPOCH, which replaces the present time, is no number of seconds.
    """
    by_path = {item.path: asdict(item) for item in inputs}
    return {
        "date": _date().strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": _version(),
        "command": _command_line(command),
        "settings": dict(settings),
        "seeds": dict(_seeds(settings)),
        "inputs": list(by_path.values()),
    }


def _date() -> datetime:
    seconds = os.environ.get(_DATE_VARIABLE)
    if seconds is None:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"{_DATE_VARIABLE} is {seconds!r}; it must be seconds since 1970") from error


def _version() -> str:
    try:
        return version("facelt")
    except PackageNotFoundError:
        return "not installed"


def _command_line(command: str) -> str:
    """Returns the command line of this process; a program of one command lacks its name."""
    arguments = sys.argv[1:]
    words = arguments if arguments[:1] == [command] else [command, *arguments]
    return shlex.join(["facelt", *words])


def _seeds(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _seeds(value, f"{prefix}{key}.")
        elif key == "seed" and value is not None:
            yield f"{prefix}{key}", value
