"""Which label of the data each class of a model stands for.

C classes.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelt.config import DataConfig, RecordData
from facelt.data.manifest import read_manifest

OWN = "a class is the label of the same number in the data, which has no other names"
SELECTED = "a class is the label below at its place, as the manifest renames it; -1 where it has no image"


@dataclass(frozen=True)
class ClassMap:
    """`label_C`: labels as the data itself has them, int64 [C], and in words what they are."""

    label_C: np.ndarray
    meaning: str

    @classmethod
    def of(cls, config: DataConfig, num_classes: int) -> "ClassMap":
        """Records selected by a manifest have new labels; all other data keeps its own. Raises UserError."""
        if not isinstance(config, RecordData) or config.manifest is None:
            return cls(np.arange(num_classes), OWN)
        rows = read_manifest(config.manifest)
        label_C = np.full(num_classes, -1, dtype=np.int64)
        label_C[rows.new_label_M] = rows.label_M
        return cls(label_C, SELECTED)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.label_C, dtype="<i8").tobytes()).hexdigest()

    def card(self) -> dict[str, Any]:
        """What a card says of it; the labels are left out where they are the classes."""
        labels = {} if self.meaning == OWN else {"labels": self.label_C.tolist()}
        return {"meaning": self.meaning, "sha256": self.sha256, **labels}
