"""Sampling with replacement: first a class by its share of the draws, then one of its images, each alike.

Shapes: K classes that have images, T = steps * batch draws of an epoch.
"""

from abc import abstractmethod

import numpy as np

from facelt.data.hashing import Stream, hash64
from facelt.data.samplers.sampler import TrainingSampler

_UNIT = 2.0**-53


class ClassShareSampler(TrainingSampler):
    """Each draw is its own: a class with the probability the subclass gives it, then an image of that class uniformly.

    Source of the shares: Kang et al., Decoupling Representation and Classifier, ICLR 2020, section 3: a class of n
    images is drawn in proportion to n^q. An epoch has as many steps as one of instance sampling.
    """

    @abstractmethod
    def shares(self, epoch: int) -> np.ndarray:
        """The classes' probabilities in an epoch, float64 [K] in ascending order of their labels, in all 1."""

    def epoch(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        position_T = np.arange(self.steps_per_epoch * self.batch)
        # What lies past the last edge between two classes is the last class's: the shares' sum may be a rounding off 1.
        edge = np.cumsum(self.shares(epoch))[:-1]
        class_T = np.searchsorted(edge, _uniform(Stream.CLASS_DRAW, self.seed, epoch, position_T), side="right")
        offset_T = _uniform(Stream.IMAGE_DRAW, self.seed, epoch, position_T) * count_K[class_T]
        return member_M[start_K[class_T] + offset_T.astype(np.int64)]

    def _powers(self, exponent: float) -> np.ndarray:
        """Shares in proportion to n^exponent, float64 [K]."""
        power_K = self._classes.count_K.astype(np.float64) ** exponent
        return power_K / power_K.sum()


def _uniform(*words: int | np.ndarray) -> np.ndarray:
    """The hash as float64 in [0, 1); its upper 53 bits, which is what a float64 holds."""
    return (hash64(*words) >> np.uint64(11)) * _UNIT


class ClassBalancedSampler(ClassShareSampler):
    """Every class alike: q = 0."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(0)


class SquareRootSampler(ClassShareSampler):
    """By the square root of the class's images: q = 1/2."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(0.5)


class ProgressiveSampler(ClassShareSampler):
    """From every image alike to every class alike: (1 - t/T) times q = 1 and t/T times q = 0 in epoch t of T."""

    def shares(self, epoch: int) -> np.ndarray:
        over = min(epoch / self._epochs, 1.0)
        return (1 - over) * self._powers(1) + over * self._powers(0)


class ReversedSampler(ClassShareSampler):
    """The rarer the more often: in proportion to n_max / n, so q = -1 (Zhou et al., BBN, CVPR 2020, section 4.2)."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(-1)
