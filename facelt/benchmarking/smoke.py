"""A recipe shortened to what a CPU does in minutes: it says that everything works, and nothing about accuracy."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from facelt.benchmarking.records import SmokeRecord
from facelt.benchmarking.trial import Trial, test_accuracy
from facelt.config import TrainConfig
from facelt.errors import UserError

EPOCHS = 1


def shortened(config: TrainConfig, out: Path, most: int = EPOCHS) -> TrainConfig:
    """The same run with so few epochs a stage, warm-up in proportion, the network in bfloat16, every step logged."""
    values = config.model_dump()
    for stage in values["stages"]:
        epochs = min(stage["epochs"], most)
        stage["schedule"]["warmup_epochs"] *= epochs / max(stage["epochs"], 1)
        stage["epochs"] = epochs
    return TrainConfig.model_validate({**values, "out": out, "precision": "bf16", "log_every": 1})


def run_smoke(trial: Trial, config: TrainConfig, say: Callable[[str], None]) -> SmokeRecord:
    """Trains the shortened recipe in a folder that goes again, says each stage's losses, and tests it once.

    Raises UserError where a loss was not finite or did not fall; Stopped as training does.
    """
    from facelt.engine.run import run

    with tempfile.TemporaryDirectory(prefix="facelt-smoke-") as folder:
        short = shortened(config, Path(folder) / "run")
        run(short)
        losses = losses_of(short.out)
        test_accuracy(short)
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


def losses_of(run: Path) -> dict[str, tuple[float, float]]:
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
