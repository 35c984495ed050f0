"""Run folder: resolved configuration, log, and one folder per stage.

config.yaml  stages.json  metrics.jsonl  tensorboard/  nonfinite/  <stage>/{checkpoints/, best.safetensors}
<stage>/{model.safetensors, card.json}   once the stage is finished
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from facelt.config.train import RESUME_MAY_CHANGE, StageConfig, TrainConfig, matches_any
from facelt.config.yaml_file import dump_yaml, read_yaml
from facelt.errors import UserError
from facelt.inference.model import CARD_FILE, STAGES_FILE, WEIGHTS_FILE, read_stage_names
from facelt.training.checkpoint import checkpoint_step
from recordio_tools.atomic_io import write_text


class RunFolder:
    """Paths of a run's files. `create` makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.nonfinite = path / "nonfinite"

    @classmethod
    def create(cls, config: TrainConfig, resume: bool) -> "RunFolder":
        """Creates the folder, or reuses it with `resume`.

        A run that has saved no trained step starts from the beginning, with any configuration. Checkpoints of finished
        stages are removed. Raises UserError if the folder already holds a run, and on resuming if the configuration
        differs in more than the keys that do not affect the trained model.
        """
        folder = cls(config.out)
        settings = config.model_dump(mode="json", exclude={"out"})
        recorded = folder._recorded()
        if recorded is not None and not resume:
            raise UserError(f"{config.out}: already holds a run; add --resume to continue, or set another out=FOLDER")
        if recorded is not None and not folder.has_trained_steps():
            folder._clear()
            recorded = None
        changed = [] if recorded is None else _differences(_upgraded(recorded, config.out), settings)
        if fixed := ", ".join(key for key in changed if not matches_any(key, RESUME_MAY_CHANGE)):
            raise UserError(f"{config.out}: this run has other settings ({fixed}); resume with the same ones")
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            for stage in config.stages:
                folder.stage(stage.name).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot create the folder ({error.strerror})") from error
        if recorded is None:
            write_text(folder.path / STAGES_FILE, json.dumps([stage.name for stage in config.stages]) + "\n")
        if recorded is None or changed:
            write_text(folder._config, dump_yaml(settings))
        for stage in config.stages:
            if folder.is_finished(stage.name):
                # Left by a process that was killed after writing the card.
                shutil.rmtree(folder.checkpoints(stage.name), ignore_errors=True)
        return folder

    def holds_all(self, stages: Sequence[StageConfig]) -> bool:
        """Returns whether all stages are finished."""
        return all(self.is_finished(stage.name) for stage in stages)

    def has_trained_steps(self) -> bool:
        """Returns whether the folder has a finished stage or a checkpoint after the first step."""
        return any(map(self.has_begun, self._recorded_stages()))

    def has_begun(self, stage: str) -> bool:
        """Returns whether the stage is finished or has a checkpoint after its first step."""
        return self.is_finished(stage) or self.trained_steps(stage) > 0

    def trained_steps(self, stage: str) -> int:
        """Returns the steps of an unfinished stage's newest checkpoint; 0 without one."""
        return max(map(checkpoint_step, self.checkpoints(stage).glob("step-*")), default=0)

    def place_for_changes(self) -> str:
        """Returns in words the run in which a setting of the recipe can be changed: this one or a new one."""
        return "in a new run, with another out=FOLDER" if self.has_trained_steps() else "in this run, with --resume"

    def stage(self, name: str) -> Path:
        return self.path / name

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage) / "checkpoints"

    def best(self, stage: str) -> Path:
        return self.stage(stage) / "best.safetensors"

    def weights(self, stage: str) -> Path:
        return self.stage(stage) / WEIGHTS_FILE

    def card(self, stage: str) -> Path:
        return self.stage(stage) / CARD_FILE

    def is_finished(self, stage: str) -> bool:
        """Returns whether the stage has a card, which is written last."""
        return self.card(stage).is_file()

    def _clear(self) -> None:
        """Removes the files of a run without trained steps; those that no run writes stay."""
        stages = self._recorded_stages()
        try:
            for path in (self.metrics, *map(self.best, stages)):
                path.unlink(missing_ok=True)
            for path in (self.tensorboard, self.nonfinite, *map(self.checkpoints, stages)):
                if path.exists():
                    shutil.rmtree(path)
            for path in map(self.stage, stages):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            self._config.unlink()  # last: without it the folder holds no run
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be removed ({error.strerror})") from error

    def _recorded_stages(self) -> list[str]:
        path = self.path / STAGES_FILE
        try:
            return read_stage_names(path)
        except (OSError, ValueError):
            reason = "not a list of stages; the run cannot be resumed, set another out=FOLDER"
            raise UserError(f"{path}: {reason}") from None

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    def _recorded(self) -> dict | None:
        if not self._config.exists():
            return None
        recorded = read_yaml(self._config)
        return recorded if isinstance(recorded, dict) else {}


def _upgraded(recorded: dict, out: Path) -> dict:
    """Returns the settings recorded by an earlier version, with newer keys at their defaults."""
    try:
        return TrainConfig.model_validate({**recorded, "out": out}).model_dump(mode="json", exclude={"out"})
    except ValidationError:
        return recorded


def _differences(left: dict, right: dict, prefix: str = "") -> list[str]:
    """Returns the dotted keys whose values differ."""
    keys: list[str] = []
    for key in left.keys() | right.keys():
        values = left.get(key), right.get(key)
        if all(isinstance(value, dict) for value in values):
            keys += _differences(*values, f"{prefix}{key}.")
        elif values[0] != values[1]:
            keys.append(f"{prefix}{key}")
    return sorted(keys)
