"""Benchmark runs: recipes of the suites, training and testing, run time, and smoke tests."""

import difflib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from facelt.benchmarking.records import (
    RESULT_FILE,
    RunRecord,
    SmokeRecord,
    changed_settings,
    config_digest,
    machine_name,
)
from facelt.benchmarking.reuse import adopt_stages, drop_unfinished, read_reused
from facelt.benchmarking.times import SESSIONS_FILE, record_stage, timed_session
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.errors import Interrupted, UserError
from recordio_tools.atomic_io import write_text
from recordio_tools.bounded_io import read_json

_BASE_FILE = "base.yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe, configs/SUITE/NAME.yaml; the recipes of a suite share its base.yaml."""

    suite: str
    name: str
    path: Path

    @property
    def title(self) -> str:
        """SUITE/NAME, as on the command line."""
        return f"{self.suite}/{self.name}"


def all_recipes(configs: Path) -> list[Recipe]:
    """Returns the recipes of all suites, sorted by name; a suite is a folder with a base.yaml."""
    suites = sorted(base.parent for base in configs.glob(f"*/{_BASE_FILE}"))
    return [
        Recipe(suite.name, path.stem, path)
        for suite in suites
        for path in sorted(suite.glob("*.yaml"))
        if path.name != _BASE_FILE
    ]


def find_recipe(configs: Path, title: str) -> Recipe:
    """Returns a recipe by its title, or a YAML file as a recipe of its folder.

    Raises UserError with the nearest titles.
    """
    path = Path(title)
    if path.suffix in (".yaml", ".yml"):
        return Recipe(path.resolve().parent.name, path.stem, path)
    recipes = {recipe.title: recipe for recipe in all_recipes(configs)}
    if title in recipes:
        return recipes[title]
    # The suite is missing, or the name is misspelt.
    near = [name for name in recipes if name.endswith(f"/{title}")] or difflib.get_close_matches(title, recipes, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(recipes) or 'none'}"
    raise UserError(f"{title}: no such recipe; {hint}")


def imbalance_of(config: TrainConfig) -> float | None:
    """Returns the size of the largest class over the smallest for synthetic imbalance, else None."""
    return getattr(config.data, "imbalance", None)


_DIGITS = 12  # of the hash of the training images
_OWN_OPTIONS = {"out": "--out", "seed": "--seeds", "device": "--device", "data.imbalance": "--imbalance"}


@dataclass(frozen=True)
class BenchmarkRun:
    """A recipe with the user's settings; it is run once per seed."""

    recipe: Recipe
    settings: tuple[str, ...]
    imbalance: float | None
    device: str | None
    out: Path
    commit: str

    def config(self, seed: int) -> TrainConfig:
        """Returns the configuration for a seed; each run has a separate folder. Raises UserError."""
        for setting in self.settings:
            key = setting.partition("=")[0]
            if key in _OWN_OPTIONS:
                raise UserError(f"--set {setting}: use {_OWN_OPTIONS[key]} instead")
        overrides = [*self.settings, f"seed={seed}"]
        overrides += [] if self.device is None else [f"device={self.device}"]
        overrides += [] if self.imbalance is None else [f"data.imbalance={self.imbalance}"]
        config = load_config(self.recipe.path, TrainConfig, overrides)
        imbalance = imbalance_of(config)
        folder = f"{'data' if imbalance is None else f'if{imbalance:g}'}_{config_digest(config)}"
        out = self.out / self.recipe.suite / self.recipe.name / folder / f"seed{seed}"
        return config.model_copy(update={"out": out})

    def identity(self, config: TrainConfig) -> dict:
        """Returns the fields of a record that say which run it is of."""
        return {
            "suite": self.recipe.suite,
            "recipe": self.recipe.name,
            "imbalance": imbalance_of(config),
            "settings": changed_settings(self.settings),
            "config": config_digest(config),
            "seed": config.seed,
        }

    def info(self, config: TrainConfig) -> dict:
        """Returns the fields that all records of the run share."""
        environment = {"machine": machine_name(config.device), "torch": version("torch"), "commit": self.commit}
        return {**self.identity(config), **environment}


def require_fresh(configs: Sequence[TrainConfig]) -> None:
    """Raises UserError if one of the folders already holds a run."""
    for config in configs:
        if (config.out / "config.yaml").exists():
            raise UserError(f"{config.out}: already holds a run; add --resume to continue it, or choose another --out")


def read_result(config: TrainConfig) -> RunRecord | None:
    """Reads the record of a finished run; None for other runs. Raises UserError if it cannot be read."""
    path = config.out / RESULT_FILE
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate(read_json(path))
    except (OSError, ValueError):
        raise UserError(f"{path}: not a benchmark record; remove it and add --resume to test the model again") from None


def run_benchmark(benchmark: BenchmarkRun, config: TrainConfig, reuse: bool, echo: Callable[[str], None]) -> RunRecord:
    """Trains the recipe, or continues the run in the folder, and tests the model of the last stage.

    With `reuse` the first stages are taken from runs of other recipes that finished equal ones; `echo` receives a line
    on each. Raises UserError; raises Interrupted, with a checkpoint saved, after SIGTERM or SIGINT.
    """
    from facelt.distributed.launch import graceful_shutdown
    from facelt.training.run import run

    with graceful_shutdown(), timed_session(config.out / SESSIONS_FILE) as minutes_so_far:
        drop_unfinished(config.out)
        if reuse:
            adopt_stages(config, benchmark.out, echo)
        run(config, resume=True, stage_done=lambda stage: record_stage(config.out, stage, minutes_so_far()))
        try:
            result = evaluate_on_test(config)
        except Interrupted as error:
            raise Interrupted(error.signal_number, "continue with --resume") from None
    record = RunRecord(
        **benchmark.info(config),
        **result,
        minutes=minutes_so_far(),
        width=network_width(config),
        epochs=tuple(stage.epochs for stage in config.stages if stage.epochs),
        reused=read_reused(config.out),
    )
    write_text(config.out / RESULT_FILE, record.model_dump_json(indent=1) + "\n")
    return record


def evaluate_on_test(config: TrainConfig) -> dict:
    """Returns the test accuracy of a finished run, its epoch in words, and its training images, as in its record."""
    from facelt.distributed.launch import resolve_device
    from facelt.evaluation.evaluate import closed_set_accuracy
    from facelt.inference.model import load_model

    model = load_model(config.out, resolve_device(config.device))
    best = model.card.get("best") or {}
    accuracy = closed_set_accuracy(model, "test", "paper", batch=512, workers=config.data.workers)
    return {
        **{name: getattr(accuracy, name) for name in ("overall", "many", "medium", "few")},
        "chosen": f"best validation, epoch {best['epoch']:g}" if best else "last epoch",
        "subset": f"{config.data.training_file} {model.card['data_fingerprint'][:_DIGITS]}",
    }


def network_width(config: TrainConfig) -> str | None:
    """Returns the channels of the stages of the last network, such as 16-32-64 or 3 x 16-24-48 for three branches.

    None for a backbone without such a list.
    """
    from facelt.config.registry import BACKBONES

    backbone, branches = BACKBONES[config.model.backbone], config.stages[-1].branches
    if not backbone.widths:
        return None
    widths = backbone.widths if branches is None else backbone.branch_widths(branches.split, branches.width)
    return ("" if branches is None else f"{branches.count} x ") + "-".join(map(str, widths))


_SMOKE_EPOCHS = 1


def shorten_recipe(config: TrainConfig, out: Path, epochs: int = _SMOKE_EPOCHS) -> TrainConfig:
    """Returns a smoke test's configuration: few epochs per stage, proportional schedule, bfloat16, all steps logged."""
    values = config.model_dump()
    for stage in values["stages"]:
        schedule = stage["schedule"]
        schedule["warmup_epochs"] *= min(stage["epochs"], epochs) / max(stage["epochs"], 1)
        if schedule["at"]:
            shares = [min(epoch / max(stage["epochs"], 1), 1.0) for epoch in schedule["at"]]
            schedule |= {"at": (), "milestones": shares}
        stage["epochs"] = min(stage["epochs"], epochs)
    return TrainConfig.model_validate({**values, "out": out, "precision": "bf16", "log_every": 1})


def run_smoke_test(benchmark: BenchmarkRun, config: TrainConfig, echo: Callable[[str], None]) -> SmokeRecord:
    """Trains the shortened recipe in a temporary folder, tests it once, and prints the losses of each stage by `echo`.

    Raises UserError if a loss is not finite or does not decrease; Interrupted as training does.
    """
    from facelt.training.run import run

    with tempfile.TemporaryDirectory(prefix="facelt-smoke-") as folder:
        short = shorten_recipe(config, Path(folder) / "run")
        try:
            run(short)
        except Interrupted as error:
            raise Interrupted(error.signal_number) from None  # the folder with the checkpoint is removed
        losses = first_and_last_losses(short.out)
        evaluate_on_test(short)
        skipped = sorted(path.name for path in (short.out / "nonfinite").glob("*"))
    for stage in short.stages:
        if stage.name in losses:
            first, last = losses[stage.name]
            echo(f"{stage.name}: loss {first:.4f} at the start, {last:.4f} at the end")
        else:
            echo(f"{stage.name}: no steps, no loss")
    if skipped:
        raise UserError(f"{benchmark.recipe.title}: a loss or gradient was not finite ({skipped[0]})")
    for stage, (first, last) in losses.items():
        if not (math.isfinite(first) and math.isfinite(last) and last < first):
            problem = f"the loss of the stage {stage} does not decrease ({first:g} to {last:g})"
            raise UserError(f"{benchmark.recipe.title}: {problem}")
    return SmokeRecord(**benchmark.info(config), losses=losses)


def first_and_last_losses(run: Path) -> dict[str, tuple[float, float]]:
    """Returns the mean loss of the first and the last quarter of each stage's steps.

    If steps have several levels, by the logged `level`, these are means over the levels, which are separate tasks.
    """
    by_level: dict[str, dict[float, list[float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "loss" in values:
            levels = by_level.setdefault(values["stage"], {})
            levels.setdefault(values.get("level", 0.0), []).append(values["loss"])
    losses_by_stage = {}
    for stage, levels in by_level.items():
        quarters = [(losses, max(len(losses) // 4, 1)) for losses in levels.values()]
        first = fmean(fmean(losses[:quarter]) for losses, quarter in quarters)
        losses_by_stage[stage] = (first, fmean(fmean(losses[-quarter:]) for losses, quarter in quarters))
    return losses_by_stage
