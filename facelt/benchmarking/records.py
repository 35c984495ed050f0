"""Benchmark records, published results, and the environment of a run."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from facelt.config.base import Fraction, StrictModel
from facelt.config.loading import load_config
from facelt.config.train import RESUME_MAY_CHANGE, TrainConfig, matches_any
from facelt.errors import UserError

_NEUTRAL_KEYS = RESUME_MAY_CHANGE | {"out", "seed", "device", "data.root", "data.download"}
"""Keys that do not change a recipe: paths, seed, machine."""


class _RunInfo(StrictModel):
    """Recipe, `settings` that the user changed, seed and environment. `config` is the digest of the configuration."""

    suite: str
    recipe: str
    imbalance: float | None
    settings: tuple[str, ...] = ()
    config: str
    seed: int
    machine: str
    torch: str
    commit: str


class ReusedStage(StrictModel):
    """A stage that the run of another recipe, SUITE/NAME, trained: its minutes and commit, None if not recorded."""

    stage: str
    recipe: str
    minutes: float | None = Field(ge=0)
    commit: str | None


class RunRecord(_RunInfo):
    """A complete run: accuracy on the test split, overall and by shot bands of the paper's convention, as fractions.

    `chosen` is the tested epoch in words; `minutes` of training and testing are None if a session was killed. `width`
    are the channels of the tested network's stages, `subset` the file of the training images and twelve digits of the
    SHA-256 of their positions in it and labels, `epochs` those of each stage with any. Earlier versions did not record
    these three, which are then None. `reused` are the first stages that were taken from other runs; their minutes are
    not in `minutes`.
    """

    kind: Literal["run"] = "run"
    overall: Fraction
    many: Fraction | None
    medium: Fraction | None
    few: Fraction | None
    chosen: str
    minutes: float | None = Field(ge=0)
    width: str | None = None
    subset: str | None = None
    epochs: tuple[int, ...] | None = None
    reused: tuple[ReusedStage, ...] = ()


RESULT_FILE = "result.json"
"""The record of a finished run in its folder."""


class SmokeRecord(_RunInfo):
    """A smoke test that passed: first and last loss of each stage. It is no result of the recipe."""

    kind: Literal["smoke"] = "smoke"
    losses: dict[str, tuple[float, float]]


BenchmarkRecord = RunRecord | SmokeRecord
_LINE = TypeAdapter(Annotated[BenchmarkRecord, Field(discriminator="kind")])


def read_records(path: Path) -> list[BenchmarkRecord]:
    """Reads all records in order; none if the file does not exist. Raises UserError naming an invalid line."""
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
            key = ".".join(map(str, error.errors()[0]["loc"])) or "the line"
            raise UserError(f"{path}, line {number}: {key}: {error.errors()[0]['msg']}; fix or remove it") from None
    return records


def append_record(path: Path, record: BenchmarkRecord) -> None:
    """Appends a line in one write, so that several runs can append at a time. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def config_digest(config: TrainConfig) -> str:
    """Returns twelve hexadecimal digits that do not depend on paths, seed and machine.

    Keys with default values are left out, so that a key added in a later version does not change the digest.
    """
    values = without_neutral_keys(config.model_dump(mode="json", exclude_defaults=True))
    return digest_of({key: value for key, value in values.items() if value != {}})


def without_neutral_keys(values: dict) -> dict:
    """Returns the values of a configuration without paths, seed, machine, and keys that do not affect the model."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key in _NEUTRAL_KEYS:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    return values


def digest_of(values: object) -> str:
    """Returns the first twelve hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def changed_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """Returns the settings that change the recipe, sorted."""
    return tuple(sorted(setting for setting in settings if not matches_any(setting.partition("=")[0], _NEUTRAL_KEYS)))


_Percent = Annotated[float, Field(ge=0, le=100)]

PUBLISHED_SOURCES = {
    "C": "from the authors' code",
    "P": "paper, poster or slides",
    "R": "README or a reply of the authors on GitHub",
    "S": "a table in another paper",
    "M": "unconfirmed (not a target)",
}


class PublishedMethod(StrictModel):
    """Top-1 accuracy in % of a method on a suite, by imbalance, from one kind of source.

    `recipe` is the corresponding recipe of this project, if any; `selection` is the choice of epoch, and `epochs` their
    number, if known. `network` and `subset` say in words that it was another network than that of the suite's recipes,
    or that other training images were drawn from the data set: such results are not comparable with ours.
    """

    suite: str
    method: str
    recipe: str | None = None
    source: Literal["C", "P", "R", "S", "M"]
    selection: str | None = None
    epochs: int | None = Field(None, ge=1)
    network: str | None = None
    subset: str | None = None
    accuracy: dict[float, _Percent]


class Published(StrictModel):
    """Schema of the file of published results."""

    figures: tuple[PublishedMethod, ...]


PUBLISHED_FILE = Path(__file__).with_name("published.yaml")


def read_published(path: Path = PUBLISHED_FILE) -> tuple[PublishedMethod, ...]:
    """Reads published results. Raises UserError naming the invalid key."""
    return load_config(path, Published).figures


_SOURCE_FOLDERS = ("facelt", "recordio_tools", "configs")


def machine_name(device: str) -> str:
    """Returns the name of the GPU, or of the processor with its number of cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def source_commit(checkout: Path | None) -> str:
    """Returns ten digits of the commit, with `+changes` for modified sources; `unknown` without git.

    Without a checkout returns the version of the installed package.
    """
    if checkout is None:
        return f"facelt {version('facelt')}"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")[:10]
        changed = git("status", "--porcelain", "--", *_SOURCE_FOLDERS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit
