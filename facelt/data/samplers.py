"""The one source of chance in sampling: a hash of named numbers.

A hash needs no state, so any position of any epoch can be drawn on its own, by any rank or worker, and a resumed run
draws what the straight run would have drawn. It also gives the same order whatever version of a library is installed.

What every sampler is, and what the training samplers share: the images of each class, side by side.

Shapes: N images of the dataset, M of them drawn from, K classes that have images, T = steps * batch draws of an epoch.

OLTR's class-aware sampling: a few images of one class after another.

Shapes: N images, K classes that have images, T = steps * batch draws of an epoch.

Sampling with replacement: first a class by its share of the draws, then one of its images, each alike.

Shapes: K classes that have images, T = steps * batch draws of an epoch.

Classes of one size, by repeating images of the small ones or by leaving out images of the large ones.

Shapes: M images that are drawn from, K classes that have images, S places in the list of an epoch.

Instance sampling: the data as they are.

Shapes: M images that are drawn from.

The images in order, for all that does not train.

Shapes: M images that are listed.

Training and validation images of one labelled set.

Shapes: N images.

Which images a step sees, as pure functions of (seed, epoch, global position).

Nothing here knows ranks or workers: they take their share of what a sampler lists, so the sequence of global batches
never depends on them, and a run resumed at any step sees exactly what is left.
"""

from abc import ABC, abstractmethod
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from facelt.config.registry import register_sampler
from facelt.errors import UserError
from recordio_tools.deterministic_random import splitmix64


class RngStream(IntEnum):
    """What a hash decides: equal seeds must not give equal draws for two different questions."""

    INSTANCE_ORDER = 1
    CLASS_ORDER = 2
    IMAGE_ORDER = 3
    DRAW_SEED = 4
    VALIDATION = 5
    CLASS_DRAW = 6
    IMAGE_DRAW = 7
    EVEN_IMAGES = 8
    EVEN_ORDER = 9
    STREAM_SEED = 10


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """Hash integers to uniform uint64, elementwise; the arguments broadcast against each other.

    Each word passes through SplitMix64. Every step is a bijection, so two calls that differ in their last word alone
    never collide: sorting by the hash of an index has no ties.
    """
    state = np.uint64(0)
    for word in words:
        state = splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return state


class Sampler(ABC):
    """Common protocol: `batch`, `steps_per_epoch`, `epoch(epoch)` and `draws(epoch)`."""

    def __init__(self, batch: int, steps_per_epoch: int, seed: int) -> None:
        self.batch = batch
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed

    @abstractmethod
    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Dataset indices of one epoch in order, int64; step s takes positions s * batch to (s + 1) * batch."""

    def epoch_requests(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of one epoch and a seed for each draw: non-negative int64, a hash of (seed, epoch, position)."""
        index_T = self.epoch_indices(epoch)
        seed_T = hash_words(RngStream.DRAW_SEED, self.seed, epoch, np.arange(len(index_T))) >> np.uint64(1)
        return index_T, seed_T.astype(np.int64)


class ClassIndex(NamedTuple):
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
    def _classes(self) -> ClassIndex:
        order_M = np.argsort(self._label_M, kind="stable")
        _, start_K, count_K = np.unique(self._label_M[order_M], return_index=True, return_counts=True)
        return ClassIndex(self._member_M[order_M], start_K, count_K)


@register_sampler("class_aware")
class ClassAwareSampler(TrainingSampler):
    """`per_class` consecutive images of one class after another.

    The classes come in shuffled cycles; each class steps through its own images in shuffled cycles, `per_class` at a
    visit, wrapping round where it has fewer. An epoch has floor(N / batch) steps; classes without images are left out.

    Both cycles go on over epochs: the draws are one endless sequence of which an epoch is a window. A head class gives
    an epoch only a part of its images, and going on is what makes it show all of them before it repeats one; restarting
    each epoch would leave the coverage of its images to chance.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch: int,
        seed: int,
        members: np.ndarray | None = None,
        *,
        epochs: int = 1,
        per_class: int = 4,
    ) -> None:
        super().__init__(labels, batch, seed, members, epochs=epochs)
        self.per_class = per_class

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_N, start_K, count_K = self._classes
        total = self.steps_per_epoch * self.batch
        position_T = np.arange(epoch * total, (epoch + 1) * total)
        visit_T = position_T // self.per_class
        cycle_T, slot_T = np.divmod(visit_T, len(count_K))
        class_T = self._class_order(cycle_T[0], cycle_T[-1])[cycle_T - cycle_T[0], slot_T]
        # A class is visited once a cycle, so how many of its images came before follows from the cycle alone.
        round_T, offset_T = np.divmod(cycle_T * self.per_class + position_T % self.per_class, count_K[class_T])
        return member_N[start_K[class_T] + self._shuffled(class_T, round_T, offset_T)]

    def _class_order(self, first: int, last: int) -> np.ndarray:
        """The shuffled classes of cycles first..last, int64 [cycles,K]."""
        cycle_R1 = np.arange(first, last + 1)[:, None]
        class_K = np.arange(len(self._classes.count_K))
        return np.argsort(hash_words(RngStream.CLASS_ORDER, self.seed, cycle_R1, class_K), axis=1)

    def _shuffled(self, class_T: np.ndarray, round_T: np.ndarray, offset_T: np.ndarray) -> np.ndarray:
        """Position within its class of each draw: place `offset` of that class's order in round `round`.

        All (class, round) pairs in use are shuffled by one sort: at most T + 2N images, since all but the first and the
        last round of a class are drawn whole.
        """
        rounds = int(round_T.max()) + 1
        pair_Q, pair_T = np.unique(class_T * rounds + round_T, return_inverse=True)
        class_Q, round_Q = np.divmod(pair_Q, rounds)
        count_Q = self._classes.count_K[class_Q]
        end_Q = np.cumsum(count_Q)
        pair_S = np.repeat(np.arange(len(pair_Q)), count_Q)
        image_S = np.arange(end_Q[-1]) - (end_Q - count_Q)[pair_S]
        key_S = hash_words(RngStream.IMAGE_ORDER, self.seed, class_Q[pair_S], round_Q[pair_S], image_S)
        order_S = np.lexsort((key_S, pair_S))
        return image_S[order_S[(end_Q - count_Q)[pair_T] + offset_T]]


_UNIT = 2.0**-53


class ClassPriorSampler(TrainingSampler):
    """Each draw is its own: a class with the probability the subclass gives it, then an image of that class uniformly.

    Source of the shares: Kang et al., Decoupling Representation and Classifier, ICLR 2020, section 3: a class of n
    images is drawn in proportion to n^q. An epoch has as many steps as one of instance sampling.
    """

    @abstractmethod
    def shares(self, epoch: int) -> np.ndarray:
        """The classes' probabilities in an epoch, float64 [K] in ascending order of their labels, in all 1."""

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        position_T = np.arange(self.steps_per_epoch * self.batch)
        # What lies past the last edge between two classes is the last class's: the shares' sum may be a rounding off 1.
        edge = np.cumsum(self.shares(epoch))[:-1]
        class_T = np.searchsorted(edge, _uniform(RngStream.CLASS_DRAW, self.seed, epoch, position_T), side="right")
        offset_T = _uniform(RngStream.IMAGE_DRAW, self.seed, epoch, position_T) * count_K[class_T]
        return member_M[start_K[class_T] + offset_T.astype(np.int64)]

    def _powers(self, exponent: float) -> np.ndarray:
        """Shares in proportion to n^exponent, float64 [K]."""
        power_K = self._classes.count_K.astype(np.float64) ** exponent
        return power_K / power_K.sum()


def _uniform(*words: int | np.ndarray) -> np.ndarray:
    """The hash as float64 in [0, 1); its upper 53 bits, which is what a float64 holds."""
    return (hash_words(*words) >> np.uint64(11)) * _UNIT


@register_sampler("class_balanced")
class ClassBalancedSampler(ClassPriorSampler):
    """Every class alike: q = 0."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(0)


@register_sampler("square_root")
class SquareRootSampler(ClassPriorSampler):
    """By the square root of the class's images: q = 1/2."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(0.5)


@register_sampler("progressive")
class ProgressiveSampler(ClassPriorSampler):
    """From every image alike to every class alike: (1 - t/T) times q = 1 and t/T times q = 0 in epoch t of T."""

    def shares(self, epoch: int) -> np.ndarray:
        over = min(epoch / self._epochs, 1.0)
        return (1 - over) * self._powers(1) + over * self._powers(0)


@register_sampler("reversed")
class ReversedSampler(ClassPriorSampler):
    """The rarer the more often: in proportion to n_max / n, so q = -1 (Zhou et al., BBN, CVPR 2020, section 4.2)."""

    def shares(self, epoch: int) -> np.ndarray:
        return self._powers(-1)


class EqualCountSampler(TrainingSampler):
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

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        key_M = hash_words(RngStream.EVEN_IMAGES, self.seed, epoch, np.arange(len(member_M)))
        shuffled_M = member_M[np.lexsort((key_M, np.repeat(np.arange(len(count_K)), count_K)))]
        place_S = np.arange(self._images_per_epoch())
        key_S = hash_words(RngStream.EVEN_ORDER, self.seed, epoch, place_S)
        order_T = np.argsort(key_S)[: self.steps_per_epoch * self.batch]
        class_T, offset_T = np.divmod(order_T, self.size)
        return shuffled_M[start_K[class_T] + offset_T % count_K[class_T]]


@register_sampler("oversample")
class RandomOverSampler(EqualCountSampler):
    """Random over-sampling: every class as often as the largest has images. Epochs grow longer: K * n_max images."""

    @property
    def size(self) -> int:
        return max(self._classes.count_K.tolist(), default=0)


@register_sampler("undersample")
class RandomUnderSampler(EqualCountSampler):
    """Random under-sampling: every class as often as the smallest has images, others each epoch. K * n_min images."""

    @property
    def size(self) -> int:
        return min(self._classes.count_K.tolist(), default=0)


@register_sampler("instance")
class InstanceSampler(TrainingSampler):
    """Every image once an epoch in a fresh order."""

    def epoch_indices(self, epoch: int) -> np.ndarray:
        key_M = hash_words(RngStream.INSTANCE_ORDER, self.seed, epoch, np.arange(len(self._member_M)))
        return self._member_M[np.argsort(key_M)[: self.steps_per_epoch * self.batch]]


class SequentialSampler(Sampler):
    """Every image once, in order, the last partial batch kept: for evaluation, embedding and memory passes."""

    def __init__(self, count: int, batch: int, members: np.ndarray | None = None) -> None:
        self._member_M = np.arange(count) if members is None else np.asarray(members, dtype=np.int64)
        super().__init__(batch, -(-len(self._member_M) // batch), seed=0)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        return self._member_M


def train_validation_split(label_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split by images: each goes to validation with probability `fraction`, decided by a hash of (seed, index).

    Every class keeps its image of the highest hash for training, so none is lost and a class with one image stays
    there whole. Returns (train_index, validation_index), int64, ascending, together every index once.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must lie in [0, 1), not {fraction}")
    label_N = np.asarray(label_N)
    hash_N = hash_words(RngStream.VALIDATION, seed, np.arange(len(label_N)))
    in_validation_N = hash_N.astype(np.float64) < fraction * 2.0**64
    order_N = np.lexsort((hash_N, label_N))
    sorted_N = label_N[order_N]
    last_of_class_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(label_N)]
    in_validation_N[order_N[last_of_class_N]] = False
    return np.flatnonzero(~in_validation_N), np.flatnonzero(in_validation_N)
