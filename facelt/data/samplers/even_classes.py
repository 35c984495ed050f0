"""Classes of one size, by repeating images of the small ones or by leaving out images of the large ones.

Shapes: M images that are drawn from, K classes that have images, S places in the list of an epoch.
"""

from abc import abstractmethod

import numpy as np

from facelt.data.hashing import Stream, hash64
from facelt.data.samplers.sampler import TrainingSampler


class EvenSampler(TrainingSampler):
    """An epoch lists every class equally often, in a fresh order: K * size images, so floor(K * size / batch) steps.

    A class goes through its images in an order that is drawn anew each epoch, again from the front where it has fewer
    than `size`: n images come floor(size / n) or ceil(size / n) times each, but for the few that fall to the last,
    partial batch.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How often an epoch lists each class."""

    def _images_per_epoch(self) -> int:
        return len(self._classes.count_K) * self.size

    def epoch(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        key_M = hash64(Stream.EVEN_IMAGES, self.seed, epoch, np.arange(len(member_M)))
        shuffled_M = member_M[np.lexsort((key_M, np.repeat(np.arange(len(count_K)), count_K)))]
        place_S = np.arange(self._images_per_epoch())
        order_T = np.argsort(hash64(Stream.EVEN_ORDER, self.seed, epoch, place_S))[: self.steps_per_epoch * self.batch]
        class_T, offset_T = np.divmod(order_T, self.size)
        return shuffled_M[start_K[class_T] + offset_T % count_K[class_T]]


class OverSampler(EvenSampler):
    """Random over-sampling: every class as often as the largest has images. Epochs grow longer: K * n_max images."""

    @property
    def size(self) -> int:
        return max(self._classes.count_K.tolist(), default=0)


class UnderSampler(EvenSampler):
    """Random under-sampling: every class as often as the smallest has images, others each epoch. K * n_min images."""

    @property
    def size(self) -> int:
        return min(self._classes.count_K.tolist(), default=0)
