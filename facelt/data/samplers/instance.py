"""Instance sampling: the data as they are.

Shapes: M images that are drawn from.
"""

import numpy as np

from facelt.data.hashing import Stream, hash64
from facelt.data.samplers.sampler import TrainingSampler


class InstanceSampler(TrainingSampler):
    """Every image once an epoch in a fresh order."""

    def epoch(self, epoch: int) -> np.ndarray:
        key_M = hash64(Stream.INSTANCE_ORDER, self.seed, epoch, np.arange(len(self._member_M)))
        return self._member_M[np.argsort(key_M)[: self.steps_per_epoch * self.batch]]
