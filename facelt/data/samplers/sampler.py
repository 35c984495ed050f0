"""What every sampler is, and what the training samplers share: the images of each class, side by side.

Shapes: N images of the dataset, M of them drawn from, K classes that have images, T = steps * batch draws of an epoch.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import numpy as np

from facelt.data.hashing import Stream, hash64
from facelt.errors import UserError


class Sampler(ABC):
    """Common protocol: `batch`, `steps_per_epoch`, `epoch(epoch)` and `draws(epoch)`."""

    def __init__(self, batch: int, steps_per_epoch: int, seed: int) -> None:
        self.batch = batch
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed

    @abstractmethod
    def epoch(self, epoch: int) -> np.ndarray:
        """Dataset indices of one epoch in order, int64; step s takes positions s * batch to (s + 1) * batch."""

    def draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of one epoch and a seed for each draw: non-negative int64, a hash of (seed, epoch, position)."""
        index_T = self.epoch(epoch)
        seed_T = hash64(Stream.DRAW_SEED, self.seed, epoch, np.arange(len(index_T))) >> np.uint64(1)
        return index_T, seed_T.astype(np.int64)


class Classes(NamedTuple):
    """Images class by class: dataset indices [M], and where each class begins and how many it has, [K]."""

    member_M: np.ndarray
    start_K: np.ndarray
    count_K: np.ndarray


class TrainingSampler(Sampler):
    """Whole batches of labelled images; the last partial batch of an epoch is dropped.

    `members` restricts the draws to those dataset indices (a training split, some classes); `labels` are always the
    whole dataset's, and an image labelled -1 (open set) is never drawn. `epochs` is how many the stage has, for
    samplers that change from its first epoch to its last.

    Raises UserError where an epoch would not fill one batch.
    """

    def __init__(
        self, labels: np.ndarray, batch: int, seed: int, members: np.ndarray | None = None, *, epochs: int = 1
    ) -> None:
        label_N = np.asarray(labels, dtype=np.int64)
        member_M = np.arange(len(label_N)) if members is None else np.asarray(members, dtype=np.int64)
        self._member_M = member_M[label_N[member_M] >= 0]
        self._label_M = label_N[self._member_M]
        self._epochs = epochs
        images = self._images_per_epoch()
        if images < batch:
            raise UserError(f"{images} training images are fewer than one batch of {batch}: lower the batch size")
        super().__init__(batch, images // batch, seed)

    def _images_per_epoch(self) -> int:
        """Draws of an epoch before its last partial batch is dropped."""
        return len(self._member_M)

    @cached_property
    def _classes(self) -> Classes:
        order_M = np.argsort(self._label_M, kind="stable")
        _, start_K, count_K = np.unique(self._label_M[order_M], return_index=True, return_counts=True)
        return Classes(self._member_M[order_M], start_K, count_K)
