"""What a benchmark run left: one line of JSON each, in a file that only grows.

Figures that others published, from a file beside the table they stand in.

Where a figure was made: the machine, torch's version and the commit of the sources.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from facelt.config.base import StrictModel
from facelt.config.loading import load_config
from facelt.config.train import RESUME_MAY_CHANGE, TrainConfig, matches_any
from facelt.errors import UserError

_Fraction = Annotated[float, Field(ge=0, le=1)]

_NEUTRAL_KEYS = RESUME_MAY_CHANGE | {"out", "seed", "device", "data.root", "data.download"}
"""Keys that do not make it another recipe: where files lie, which seed, on which machine."""


class _Origin(StrictModel):
    """Which recipe, with which `settings` of the user beside it, of which sources. `config` is a digest of both."""

    suite: str
    recipe: str
    imbalance: float | None
    settings: tuple[str, ...] = ()
    config: str
    seed: int
    machine: str
    torch: str
    commit: str


class RunRecord(_Origin):
    """A whole run: accuracy on the test split, overall and by shots of the paper's convention, as fractions.

    `chosen` says which epoch was tested; `minutes` of training and testing are unknown (None) where a sitting was
    killed.
    """

    kind: Literal["run"] = "run"
    overall: _Fraction
    many: _Fraction | None
    medium: _Fraction | None
    few: _Fraction | None
    chosen: str
    minutes: float | None = Field(ge=0)


class SmokeRecord(_Origin):
    """A shortened run that went well: `losses` of each stage at its beginning and its end. No result of the recipe."""

    kind: Literal["smoke"] = "smoke"
    losses: dict[str, tuple[float, float]]


BenchmarkRecord = RunRecord | SmokeRecord
_LINE = TypeAdapter(Annotated[BenchmarkRecord, Field(discriminator="kind")])


def read_records(path: Path) -> list[BenchmarkRecord]:
    """Every record of the file in its order; none where the file is absent. Raises UserError naming a bad line."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_LINE.validate_json(line))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the line"
            raise UserError(f"{path}, line {number}: {where}: {error.errors()[0]['msg']}; mend or remove it") from None
    return records


def append_record(path: Path, record: BenchmarkRecord) -> None:
    """Adds a line in one piece, so that several runs may do so at a time. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def config_digest(config: TrainConfig) -> str:
    """Twelve hexadecimal digits, the same wherever the files lie and whatever the seed.

    Keys at their defaults do not count: a key that is new in a later version leaves the digest as it was.
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    for key in _NEUTRAL_KEYS:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    values = {key: value for key, value in values.items() if value != {}}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def changed_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """The settings that make it another recipe, sorted."""
    return tuple(sorted(setting for setting in settings if not matches_any(setting.partition("=")[0], _NEUTRAL_KEYS)))


_Percent = Annotated[float, Field(ge=0, le=100)]

PUBLISHED_SOURCES = {
    "C": "read in the authors' code",
    "P": "paper, poster or slides",
    "R": "the authors' README or an answer of theirs on GitHub",
    "S": "a table of others",
    "M": "unconfirmed: no target",
}


class PublishedMethod(StrictModel):
    """Top-1 accuracies in % of one method on one suite, by imbalance, from one kind of source.

    `recipe` is ours that they stand beside, if there is one; `selection` says how their epoch was chosen, if we know.
    """

    suite: str
    method: str
    recipe: str | None = None
    source: Literal["C", "P", "R", "S", "M"]
    selection: str | None = None
    accuracy: dict[float, _Percent]


class Published(StrictModel):
    """The whole file."""

    figures: tuple[PublishedMethod, ...]


def read_published(path: Path) -> tuple[PublishedMethod, ...]:
    """The figures of a file. Raises UserError naming the key at fault."""
    return load_config(path, Published).figures


_SOURCE_FOLDERS = ("facelt", "recordio_tools", "configs")


def machine_name(device: str) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def source_commit(checkout: Path) -> str:
    """The commit's first ten digits, with `+changes` where the sources differ from it; `unknown` without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")[:10]
        changed = git("status", "--porcelain", "--", *_SOURCE_FOLDERS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit
