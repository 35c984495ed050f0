"""What a stage's state came from: configuration, data, classes and libraries."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from facelt.config import TrainConfig
from facelt.engine.class_map import ClassMap
from facelt.engine.data import TrainingData
from facelt.errors import UserError

LIBRARIES = ("facelt", "torch", "numpy", "safetensors")
DATA = {"data_fingerprint": "data fingerprint", "class_map_sha256": "class map"}


class Provenance:
    """Saved with every checkpoint; one of other data is refused."""

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        self.classes = ClassMap.of(config.data, data.num_classes)
        self.facts: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "data_fingerprint": data.fingerprint(),
            "class_map": self.classes.meaning,
            "class_map_sha256": self.classes.sha256,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The labels of the classes, int64 [C]: saved for who wants to know them; nothing is read back from them."""
        return {"class_map.label_C": torch.from_numpy(self.classes.label_C)}

    def refuse_other_data(self, facts: Mapping[str, Any], checkpoints: Path) -> None:
        """Raises UserError where a checkpoint of these facts was trained on other images or other classes."""
        other = [
            f"{name} {facts[key][:12]} there, {self.facts[key][:12]} here"
            for key, name in DATA.items()
            if facts[key] != self.facts[key]
        ]
        if other:
            raise UserError(
                f"{checkpoints}: these checkpoints are of other training data ({'; '.join(other)}); go on with the "
                "data they began with, or begin a new run with another out=FOLDER"
            )
