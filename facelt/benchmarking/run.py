"""How long a run took in all, over every time it was taken up.

The recipes of the suites: configs/SUITE/RECIPE.yaml, beside the base.yaml that a suite's recipes share.

One run of a recipe: trained by the trainer, tested on the test split, recorded.

A recipe shortened to what a CPU does in minutes: it says that everything works, and nothing about accuracy.
"""

import difflib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from facelt.benchmarking.records import RunRecord, SmokeRecord, changed_settings, config_digest, machine_name
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from recordio_tools.atomic_io import write_text


@contextmanager
def timed_session(path: Path) -> Iterator[None]:
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


def total_minutes(path: Path) -> float | None:
    """The sum of all sittings; None where one of them was never closed."""
    seconds = _read(path)
    return None if None in seconds else sum(seconds) / 60


def _read(path: Path) -> list[float | None]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


_BASE_FILE = "base.yaml"


@dataclass(frozen=True)
class Recipe:
    """A file and the names it goes by."""

    suite: str
    name: str
    path: Path

    @property
    def title(self) -> str:
        """How a user calls it: SUITE/RECIPE."""
        return f"{self.suite}/{self.name}"


def all_recipes(configs: Path) -> list[Recipe]:
    """Every recipe of every suite, by name; a folder without a base.yaml is no suite."""
    suites = sorted(base.parent for base in configs.glob(f"*/{_BASE_FILE}"))
    return [
        Recipe(suite.name, path.stem, path)
        for suite in suites
        for path in sorted(suite.glob("*.yaml"))
        if path.name != _BASE_FILE
    ]


def find_recipe(configs: Path, title: str) -> Recipe:
    """The recipe of that name. Raises UserError with the nearest names where there is none."""
    known = {recipe.title: recipe for recipe in all_recipes(configs)}
    if title in known:
        return known[title]
    # A name without its suite, or one that is slightly off.
    near = [name for name in known if name.endswith(f"/{title}")] or difflib.get_close_matches(title, known, n=3)
    meant = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise UserError(f"{title}: no such recipe; {meant}")


def imbalance_of(config: TrainConfig) -> float | None:
    """The largest class over the smallest, of data that are made so; None of others."""
    return getattr(config.data, "imbalance", None)


RESULT_FILE, _SESSIONS_FILE = "result.json", "sittings.json"
_OWN_OPTIONS = {"out": "--out", "seed": "--seeds", "device": "--device", "data.imbalance": "--imbalance"}


@dataclass(frozen=True)
class BenchmarkRun:
    """A recipe as a user wants it run; the seed is given to each run."""

    recipe: Recipe
    settings: tuple[str, ...]
    imbalance: float | None
    device: str | None
    out: Path
    commit: str

    def config(self, seed: int) -> TrainConfig:
        """The configuration of the run with that seed, each in a folder of its own. Raises UserError."""
        for setting in self.settings:
            key = setting.partition("=")[0]
            if key in _OWN_OPTIONS:
                raise UserError(f"--set {setting}: give {_OWN_OPTIONS[key]} instead")
        own = [f"seed={seed}"]
        own += [] if self.device is None else [f"device={self.device}"]
        own += [] if self.imbalance is None else [f"data.imbalance={self.imbalance}"]
        config = load_config(self.recipe.path, TrainConfig, [*self.settings, *own])
        folder = f"{_words(imbalance_of(config))}_{config_digest(config)}"
        out = self.out / self.recipe.suite / self.recipe.name / folder / f"seed{seed}"
        return config.model_copy(update={"out": out})

    def origin(self, config: TrainConfig) -> dict:
        """What every record of the run says of where it comes from."""
        return {
            "suite": self.recipe.suite,
            "recipe": self.recipe.name,
            "imbalance": imbalance_of(config),
            "settings": changed_settings(self.settings),
            "config": config_digest(config),
            "seed": config.seed,
            "machine": machine_name(config.device),
            "torch": version("torch"),
            "commit": self.commit,
        }


def require_fresh(configs: Sequence[TrainConfig]) -> None:
    """Raises UserError where one of the folders holds a run already."""
    for config in configs:
        if (config.out / "config.yaml").exists():
            raise UserError(f"{config.out}: already holds a run; add --resume to go on, or choose another --out")


def read_result(config: TrainConfig) -> RunRecord | None:
    """The record of a run that is over; None while it is not. Raises UserError where it cannot be read."""
    path = config.out / RESULT_FILE
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: no record of a run; remove it and add --resume to test the model again") from None


def run_benchmark(trial: BenchmarkRun, config: TrainConfig) -> RunRecord:
    """Trains, or goes on with what is in the folder; then tests the model that the last stage hands on.

    Raises UserError, and Interrupted, with the state saved, once a signal asks for it.
    """
    from facelt.training.run import run

    with timed_session(config.out / _SESSIONS_FILE):
        run(config, resume=True)
        accuracy, chosen = evaluate_on_test(config)
    record = RunRecord(
        **trial.origin(config),
        overall=accuracy.overall,
        many=accuracy.many,
        medium=accuracy.medium,
        few=accuracy.few,
        chosen=chosen,
        minutes=total_minutes(config.out / _SESSIONS_FILE),
    )
    write_text(config.out / RESULT_FILE, record.model_dump_json(indent=1) + "\n")
    return record


def evaluate_on_test(config: TrainConfig):
    """The accuracy of the finished run on its test split, and which epoch's weights these are."""
    from facelt.distributed.launch import resolve_device
    from facelt.evaluation.evaluate import closed_set_accuracy
    from facelt.inference.model import load_model

    model = load_model(config.out, resolve_device(config.device))
    best = model.card.get("best") or {}
    chosen = f"best validation, epoch {best['epoch']:g}" if best else "last epoch"
    return closed_set_accuracy(model, "test", "paper", batch=512, workers=config.data.workers), chosen


def _words(imbalance: float | None) -> str:
    return "data" if imbalance is None else f"if{imbalance:g}"


_SMOKE_EPOCHS = 1


def shorten_recipe(config: TrainConfig, out: Path, most: int = _SMOKE_EPOCHS) -> TrainConfig:
    """The same run with so few epochs a stage, warm-up in proportion, the network in bfloat16, every step logged."""
    values = config.model_dump()
    for stage in values["stages"]:
        epochs = min(stage["epochs"], most)
        stage["schedule"]["warmup_epochs"] *= epochs / max(stage["epochs"], 1)
        stage["epochs"] = epochs
    return TrainConfig.model_validate({**values, "out": out, "precision": "bf16", "log_every": 1})


def run_smoke(trial: BenchmarkRun, config: TrainConfig, say: Callable[[str], None]) -> SmokeRecord:
    """Trains the shortened recipe in a folder that goes again, says each stage's losses, and tests it once.

    Raises UserError where a loss was not finite or did not fall; Interrupted as training does.
    """
    from facelt.training.run import run

    with tempfile.TemporaryDirectory(prefix="facelt-smoke-") as folder:
        short = shorten_recipe(config, Path(folder) / "run")
        run(short)
        losses = first_and_last_losses(short.out)
        evaluate_on_test(short)
        skipped = sorted(path.name for path in (short.out / "nonfinite").glob("*"))
    for stage in short.stages:
        if stage.name in losses:
            first, last = losses[stage.name]
            say(f"{stage.name}: loss {first:.4f} at its beginning, {last:.4f} at its end")
        else:
            say(f"{stage.name}: no steps, no loss")
    if skipped:
        raise UserError(f"{trial.recipe.title}: a loss or gradient was not finite ({skipped[0]})")
    for stage, (first, last) in losses.items():
        if not (math.isfinite(first) and math.isfinite(last) and last < first):
            fall = f"the loss of the stage {stage} does not fall ({first:g} to {last:g})"
            raise UserError(f"{trial.recipe.title}: {fall}")
    return SmokeRecord(**trial.origin(config), losses=losses)


def first_and_last_losses(run: Path) -> dict[str, tuple[float, float]]:
    """Of each stage that took steps the mean loss of its first and of its last quarter: single batches differ.

    Where a stage's steps are of several levels, by the figure `level`, it is the mean of each level's: every level is a
    task of its own.
    """
    by_level: dict[str, dict[float, list[float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        if "loss" in figures:
            levels = by_level.setdefault(figures["stage"], {})
            levels.setdefault(figures.get("level", 0.0), []).append(figures["loss"])
    found = {}
    for stage, levels in by_level.items():
        quarters = [(losses, max(len(losses) // 4, 1)) for losses in levels.values()]
        first = fmean(fmean(losses[:quarter]) for losses, quarter in quarters)
        found[stage] = (first, fmean(fmean(losses[-quarter:]) for losses, quarter in quarters))
    return found
