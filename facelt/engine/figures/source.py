"""A trained model and the images a figure is of, and how these are gone through.

N images, B images of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.engine.data import Split, TrainingData, open_data
from facelt.engine.handed_on import TrainedModel
from facelt.engine.model_evaluation import find_split
from facelt.engine.reading import Reading, evaluation_batches
from facelt.methods import Method
from facelt.metrics.accuracy import shot_bands


@dataclass(frozen=True)
class Source:
    """A model, the data it was trained on, and how images are read for it."""

    model: TrainedModel
    data: TrainingData
    reading: Reading

    @classmethod
    def of(cls, model: TrainedModel, batch: int, workers: int) -> "Source":
        """Opens the data the model's configuration names. Raises UserError."""
        device = next(model.method.parameters()).device
        reading = Reading(batch, workers, device, BadImageCount(model.config.data.max_bad_images))
        return cls(model, open_data(model.config.data, model.config.seed), reading)

    @property
    def method(self) -> Method:
        return self.model.method

    def split(self, name: str) -> Split:
        """Images to evaluate on. Raises UserError where the data have no such split."""
        return find_split(self.data, name)

    def bands(self, convention: str) -> np.ndarray:
        """The band of each class as an index into `BANDS`."""
        return shot_bands(self.data.train_counts, convention)

    def batches(self, split: Split) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Every image of the split once, as it was decoded [B,H,W,3] and as the network takes it [B,3,H,W]."""
        for item in evaluation_batches(split, self.reading):
            yield item, self.data.preparation.for_evaluation(item)


def drawn(split: Split, images: int, random: np.random.Generator) -> Split:
    """So many of the split's images, or all where there are fewer, in their order."""
    chosen = random.choice(len(split.members), min(images, len(split.members)), replace=False)
    return Split(split.dataset, split.members[np.sort(chosen)])
