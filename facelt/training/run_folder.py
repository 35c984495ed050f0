"""A run's folder: the resolved configuration, the log, and a folder for each stage.

config.yaml  stages.json  metrics.jsonl  tensorboard/  nonfinite/  <stage>/{checkpoints/, best.safetensors}
<stage>/{model.safetensors, card.json}   once the stage is finished
"""

import json
from pathlib import Path

import yaml
from pydantic import ValidationError

from facelt.config.train import RESUME_MAY_CHANGE, TrainConfig, matches_any
from facelt.errors import UserError
from facelt.inference.model import CARD, WEIGHTS
from recordio_tools.atomic_io import write_text


class RunFolder:
    """Names of the files of a run. Use `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.nonfinite = path / "nonfinite"

    @classmethod
    def create(cls, config: TrainConfig, resume: bool) -> "RunFolder":
        """Makes the folder, or with `resume` goes on in it.

        Raises UserError when it holds a run already, or, on resuming, a run of another configuration; keys that do not
        change what is trained may differ.
        """
        folder = cls(config.out)
        settings = config.model_dump(mode="json", exclude={"out"})
        recorded = folder._recorded()
        if recorded is not None and not resume:
            raise UserError(f"{config.out}: already holds a run; add --resume to go on, or choose another out=FOLDER")
        changed = [] if recorded is None else _differences(_as_now(recorded, config.out), settings)
        if others := ", ".join(key for key in changed if not matches_any(key, RESUME_MAY_CHANGE)):
            raise UserError(f"{config.out}: the run there has other settings ({others}); resume with the same ones")
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            for stage in config.stages:
                folder.stage(stage.name).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be made ({error.strerror})") from error
        if recorded is None:
            write_text(folder.path / "stages.json", json.dumps([stage.name for stage in config.stages]) + "\n")
        if recorded is None or changed:
            write_text(folder._config, yaml.safe_dump(settings, sort_keys=False))
        return folder

    def stage(self, name: str) -> Path:
        return self.path / name

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage) / "checkpoints"

    def best(self, stage: str) -> Path:
        return self.stage(stage) / "best.safetensors"

    def weights(self, stage: str) -> Path:
        return self.stage(stage) / WEIGHTS

    def card(self, stage: str) -> Path:
        return self.stage(stage) / CARD

    def is_finished(self, stage: str) -> bool:
        """The card is written last."""
        return self.card(stage).is_file()

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    def _recorded(self) -> dict | None:
        if not self._config.exists():
            return None
        try:
            recorded = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{self._config}: cannot be read ({error})") from None
        return recorded if isinstance(recorded, dict) else {}


def _as_now(recorded: dict, out: Path) -> dict:
    """Settings that an earlier version recorded, with keys that are new since then at their defaults."""
    try:
        return TrainConfig.model_validate({**recorded, "out": out}).model_dump(mode="json", exclude={"out"})
    except ValidationError:
        return recorded


def _differences(one: dict, other: dict, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found: list[str] = []
    for key in one.keys() | other.keys():
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return sorted(found)
