"""One run of a recipe: trained by the trainer, tested on the test split, recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from facelt.benchmarking.origin import machine_name
from facelt.benchmarking.recipes import Recipe, imbalance_of
from facelt.benchmarking.records import RunRecord, config_digest, telling
from facelt.benchmarking.sittings import minutes, sitting
from facelt.config import TrainConfig, load_config
from facelt.errors import UserError
from facelt.whole_files import write_text

RESULT, TIME = "result.json", "sittings.json"
OWN_OPTIONS = {"out": "--out", "seed": "--seeds", "device": "--device", "data.imbalance": "--imbalance"}


@dataclass(frozen=True)
class Trial:
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
            if key in OWN_OPTIONS:
                raise UserError(f"--set {setting}: give {OWN_OPTIONS[key]} instead")
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
            "settings": telling(self.settings),
            "config": config_digest(config),
            "seed": config.seed,
            "machine": machine_name(config.device),
            "torch": version("torch"),
            "commit": self.commit,
        }


def refuse_begun(configs: Sequence[TrainConfig]) -> None:
    """Raises UserError where one of the folders holds a run already."""
    for config in configs:
        if (config.out / "config.yaml").exists():
            raise UserError(f"{config.out}: already holds a run; add --resume to go on, or choose another --out")


def finished(config: TrainConfig) -> RunRecord | None:
    """The record of a run that is over; None while it is not. Raises UserError where it cannot be read."""
    path = config.out / RESULT
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: no record of a run; remove it and add --resume to test the model again") from None


def run_trial(trial: Trial, config: TrainConfig) -> RunRecord:
    """Trains, or goes on with what is in the folder; then tests the model that the last stage hands on.

    Raises UserError, and Stopped, with the state saved, once a signal asks for it.
    """
    from facelt.engine.run import run

    with sitting(config.out / TIME):
        run(config, resume=True)
        accuracy, chosen = test_accuracy(config)
    record = RunRecord(
        **trial.origin(config),
        overall=accuracy.overall,
        many=accuracy.many,
        medium=accuracy.medium,
        few=accuracy.few,
        chosen=chosen,
        minutes=minutes(config.out / TIME),
    )
    write_text(config.out / RESULT, record.model_dump_json(indent=1) + "\n")
    return record


def test_accuracy(config: TrainConfig):
    """The accuracy of the finished run on its test split, and which epoch's weights these are."""
    from facelt.engine.accuracy import accuracy_of
    from facelt.engine.device import resolve_device
    from facelt.engine.handed_on import load_model

    model = load_model(config.out, resolve_device(config.device))
    best = model.card.get("best") or {}
    chosen = f"best validation, epoch {best['epoch']:g}" if best else "last epoch"
    return accuracy_of(model, "test", "paper", batch=512, workers=config.data.workers), chosen


def _words(imbalance: float | None) -> str:
    return "data" if imbalance is None else f"if{imbalance:g}"
