"""Samplers: the images of every training step, and the split into training and validation images.

Every sampler is a pure function of (seed, epoch, global position): it draws by hashes of these numbers, not by a random
generator. So it depends neither on ranks nor on workers, which take their shards of what it lists, nor on library
versions, and a run resumed at any step sees the images that are left.

N images of the dataset, M of them sampled from, K classes with images, T = steps * batch positions of an epoch.
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
    """Purpose of a hash, so that equal seeds give independent numbers for different purposes."""

    INSTANCE_ORDER = 1
    CLASS_ORDER = 2
    IMAGE_ORDER = 3
    REQUEST_SEED = 4
    VALIDATION = 5
    CLASS_DRAW = 6
    IMAGE_DRAW = 7
    EQUAL_COUNT_IMAGES = 8
    EQUAL_COUNT_ORDER = 9
    SAMPLER_SEED = 10
    TEST = 11
    IDENTITY_ORDER = 12
    IDENTITY_IMAGE = 13
    MATE_IMAGE = 14
    MATE_REQUEST_SEED = 15


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """Hashes integers to uniform uint64, elementwise with broadcasting.

    Each word passes through SplitMix64. Every step is a bijection, so calls that differ only in the last word never
    collide: sorting by the hash of an index has no ties.
    """
    state = np.uint64(0)
    for word in words:
        state = splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return state


class Sampler(ABC):
    """Base class of all samplers: global batches of `batch` images, `steps_per_epoch` of them in an epoch."""

    _seed_stream = RngStream.REQUEST_SEED

    def __init__(self, batch: int, steps_per_epoch: int, seed: int) -> None:
        self.batch = batch
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed

    @abstractmethod
    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Returns the dataset indices of an epoch, int64; step s takes positions s * batch to (s + 1) * batch."""

    def epoch_requests(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of an epoch and their seeds: non-negative int64, hashes of (seed, epoch, position)."""
        index_T = self.epoch_indices(epoch)
        seed_T = hash_words(self._seed_stream, self.seed, epoch, np.arange(len(index_T))) >> np.uint64(1)
        return index_T, seed_T.astype(np.int64)


class _ClassIndex(NamedTuple):
    """Images grouped by class: dataset indices [M], and the start and the number of images of each class, [K]."""

    member_M: np.ndarray
    start_K: np.ndarray
    count_K: np.ndarray


class TrainingSampler(Sampler):
    """Base class of training samplers: batches of labelled images. A partial last batch is dropped, or with
    `drop_last=False` is the last step of the epoch.

    `members` restricts sampling to these dataset indices (a training split, some classes); `labels` are those of the
    whole dataset, and an image labelled -1 (open set) is never sampled. `epochs` is the length of the stage, for
    samplers that change over it.

    Raises UserError if an epoch would not fill one batch.
    """

    _noun = "images"

    def __init__(
        self,
        labels: np.ndarray,
        batch: int,
        seed: int,
        members: np.ndarray | None = None,
        *,
        epochs: int = 1,
        drop_last: bool = True,
    ) -> None:
        label_N = np.asarray(labels, dtype=np.int64)
        member_M = np.arange(len(label_N)) if members is None else np.asarray(members, dtype=np.int64)
        self._member_M = member_M[label_N[member_M] >= 0]
        self._label_M = label_N[self._member_M]
        self._epochs = epochs
        images = self._images_per_epoch()
        if images < batch:
            raise UserError(f"{images} training {self._noun} are fewer than one batch of {batch}; lower the batch size")
        self._positions = images // batch * batch if drop_last else images
        super().__init__(batch, -(-self._positions // batch), seed)

    def _images_per_epoch(self) -> int:
        """Images of an epoch with its partial last batch."""
        return len(self._member_M)

    @cached_property
    def _classes(self) -> _ClassIndex:
        order_M = np.argsort(self._label_M, kind="stable")
        _, start_K, count_K = np.unique(self._label_M[order_M], return_index=True, return_counts=True)
        return _ClassIndex(self._member_M[order_M], start_K, count_K)


@register_sampler("class_aware")
class ClassAwareSampler(TrainingSampler):
    """OLTR's class-aware sampling: `per_class` consecutive images of one class, then of the next.

    Classes come in shuffled cycles; each class steps through its images in shuffled cycles, `per_class` per visit,
    wrapping around if it has fewer. An epoch is as long as one of instance sampling; classes without images are
    left out.

    Both cycles continue across epochs: an epoch is a window of one endless sequence. An epoch shows only part of the
    images of a head class, so continuing shows all of them before any repeats; restarting each epoch would not.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch: int,
        seed: int,
        members: np.ndarray | None = None,
        *,
        epochs: int = 1,
        drop_last: bool = True,
        per_class: int = 4,
    ) -> None:
        super().__init__(labels, batch, seed, members, epochs=epochs, drop_last=drop_last)
        self.per_class = per_class

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_N, start_K, count_K = self._classes
        position_T = np.arange(epoch * self._positions, (epoch + 1) * self._positions)
        visit_T = position_T // self.per_class
        cycle_T, slot_T = np.divmod(visit_T, len(count_K))
        class_T = self._class_order(cycle_T[0], cycle_T[-1])[cycle_T - cycle_T[0], slot_T]
        # A class is visited once per cycle, so the number of its images shown before follows from the cycle alone.
        round_T, offset_T = np.divmod(cycle_T * self.per_class + position_T % self.per_class, count_K[class_T])
        return member_N[start_K[class_T] + self._shuffled(class_T, round_T, offset_T)]

    def _class_order(self, first: int, last: int) -> np.ndarray:
        """Returns the shuffled classes of cycles first..last, int64 [cycles,K]."""
        cycle_R1 = np.arange(first, last + 1)[:, None]
        class_K = np.arange(len(self._classes.count_K))
        return np.argsort(hash_words(RngStream.CLASS_ORDER, self.seed, cycle_R1, class_K), axis=1)

    def _shuffled(self, class_T: np.ndarray, round_T: np.ndarray, offset_T: np.ndarray) -> np.ndarray:
        """Returns each image's position within its class: entry `offset` of the class's shuffle of round `round`.

        One sort shuffles all (class, round) pairs in use: at most T + 2N images, since all rounds of a class but the
        first and the last are complete.
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


class ClassPriorSampler(TrainingSampler):
    """Sampling with replacement: a class by the subclass's class prior, then one of its images uniformly.

    Source: Kang et al., Decoupling Representation and Classifier, ICLR 2020, section 3: a class of n images has a
    probability proportional to n^q. An epoch is as long as one of instance sampling.
    """

    @abstractmethod
    def class_prior(self, epoch: int) -> np.ndarray:
        """Returns the probability of each class in an epoch, float64 [K] in ascending order of labels."""

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        position_T = np.arange(self._positions)
        # Only the edges between classes: the sum of the prior may differ from 1 by rounding.
        edge = np.cumsum(self.class_prior(epoch))[:-1]
        class_T = np.searchsorted(edge, _uniform(RngStream.CLASS_DRAW, self.seed, epoch, position_T), side="right")
        offset_T = _uniform(RngStream.IMAGE_DRAW, self.seed, epoch, position_T) * count_K[class_T]
        return member_M[start_K[class_T] + offset_T.astype(np.int64)]

    def _powers(self, exponent: float) -> np.ndarray:
        """Returns the prior proportional to n^exponent, float64 [K]."""
        power_K = self._classes.count_K.astype(np.float64) ** exponent
        return power_K / power_K.sum()


def _uniform(*words: int | np.ndarray) -> np.ndarray:
    """Returns the upper 53 bits of the hash as float64 in [0, 1)."""
    return (hash_words(*words) >> np.uint64(11)) * 2.0**-53


@register_sampler("class_balanced")
class ClassBalancedSampler(ClassPriorSampler):
    """Uniform over classes: q = 0."""

    def class_prior(self, epoch: int) -> np.ndarray:
        return self._powers(0)


@register_sampler("square_root")
class SquareRootSampler(ClassPriorSampler):
    """Proportional to the square root of the class's images: q = 1/2."""

    def class_prior(self, epoch: int) -> np.ndarray:
        return self._powers(0.5)


@register_sampler("progressive")
class ProgressiveSampler(ClassPriorSampler):
    """From uniform over images to uniform over classes: (1 - t/T) times q = 1 plus t/T times q = 0 in epoch t of T."""

    def class_prior(self, epoch: int) -> np.ndarray:
        fraction = min(epoch / self._epochs, 1.0)
        return (1 - fraction) * self._powers(1) + fraction * self._powers(0)


@register_sampler("reversed")
class ReversedSampler(ClassPriorSampler):
    """Inversely proportional to the class's images: q = -1 (Zhou et al., BBN, CVPR 2020, section 4.2)."""

    def class_prior(self, epoch: int) -> np.ndarray:
        return self._powers(-1)


class EqualCountSampler(TrainingSampler):
    """Base class of samplers with `size` images of every class in an epoch, in random order.

    An epoch has K * size images. Each class steps through its images in a new random order each epoch, repeating it if
    it has fewer than `size`: each of n images comes floor(size / n) or ceil(size / n) times, except for a dropped
    partial batch.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Images of each class in an epoch."""

    def _images_per_epoch(self) -> int:
        return len(self._classes.count_K) * self.size

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_M, start_K, count_K = self._classes
        key_M = hash_words(RngStream.EQUAL_COUNT_IMAGES, self.seed, epoch, np.arange(len(member_M)))
        shuffled_M = member_M[np.lexsort((key_M, np.repeat(np.arange(len(count_K)), count_K)))]
        position_S = np.arange(self._images_per_epoch())
        key_S = hash_words(RngStream.EQUAL_COUNT_ORDER, self.seed, epoch, position_S)
        order_T = np.argsort(key_S)[: self._positions]
        class_T, offset_T = np.divmod(order_T, self.size)
        return shuffled_M[start_K[class_T] + offset_T % count_K[class_T]]


@register_sampler("oversample")
class RandomOverSampler(EqualCountSampler):
    """Random over-sampling: every class as often as the largest one has images, so K * n_max images in an epoch."""

    @property
    def size(self) -> int:
        return max(self._classes.count_K.tolist(), default=0)


@register_sampler("undersample")
class RandomUnderSampler(EqualCountSampler):
    """Random under-sampling: every class as often as the smallest one has images, different ones each epoch."""

    @property
    def size(self) -> int:
        return min(self._classes.count_K.tolist(), default=0)


@register_sampler("instance")
class InstanceSampler(TrainingSampler):
    """Instance sampling: every image once per epoch, in a new random order."""

    def epoch_indices(self, epoch: int) -> np.ndarray:
        key_M = hash_words(RngStream.INSTANCE_ORDER, self.seed, epoch, np.arange(len(self._member_M)))
        return self._member_M[np.argsort(key_M)[: self._positions]]


@register_sampler("identity")
class IdentitySampler(TrainingSampler):
    """One image of every identity per epoch, drawn uniformly, in a new random order of the identities."""

    _noun = "identities"

    def _images_per_epoch(self) -> int:
        return len(self._classes.count_K)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        member_M, start_K, _ = self._classes
        identity_T, offset_T = self._draw(epoch)
        return member_M[start_K[identity_T] + offset_T]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the identities of an epoch and the position of the image drawn among those of each, int64 [T]."""
        count_K = self._classes.count_K
        key_K = hash_words(RngStream.IDENTITY_ORDER, self.seed, epoch, np.arange(len(count_K)))
        identity_T = np.argsort(key_K)[: self._positions]
        offset_T = _uniform(RngStream.IDENTITY_IMAGE, self.seed, epoch, identity_T) * count_K[identity_T]
        return identity_T, offset_T.astype(np.int64)


@register_sampler("identity_mate")
class IdentityMateSampler(IdentitySampler):
    """The mates of the images that `identity` lists: at each position another image of the same identity.

    The image of an identity without another one is its own mate. Augmentations are independent of those of `identity`.
    """

    _seed_stream = RngStream.MATE_REQUEST_SEED

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        identity_T, offset_T = super()._draw(epoch)
        count_T = self._classes.count_K[identity_T]
        others_T = _uniform(RngStream.MATE_IMAGE, self.seed, epoch, identity_T) * (count_T - 1)
        return identity_T, (offset_T + 1 + others_T.astype(np.int64)) % count_T


class SequentialSampler(Sampler):
    """Every image once, in order, with the partial last batch: for evaluation, embedding and memory passes."""

    def __init__(self, count: int, batch: int, members: np.ndarray | None = None) -> None:
        self._member_M = np.arange(count) if members is None else np.asarray(members, dtype=np.int64)
        super().__init__(batch, -(-len(self._member_M) // batch), seed=0)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        return self._member_M


def train_validation_split(label_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into training and validation: each is in validation with probability `fraction`, by its hash.

    Every class keeps its image of the highest hash for training, so no class is lost. Returns (train_index,
    validation_index), int64 in ascending order; together they hold every index once.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be in [0, 1), not {fraction}")
    label_N = np.asarray(label_N)
    hash_N = hash_words(RngStream.VALIDATION, seed, np.arange(len(label_N)))
    in_validation_N = hash_N.astype(np.float64) < fraction * 2.0**64
    order_N = np.lexsort((hash_N, label_N))
    sorted_N = label_N[order_N]
    last_of_class_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(label_N)]
    in_validation_N[order_N[last_of_class_N]] = False
    return np.flatnonzero(~in_validation_N), np.flatnonzero(in_validation_N)


def split_test_images(label_N: np.ndarray, fraction: float, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits off test images by class: of n images `fraction` * n, at least one, at most `most`, and never all.

    Each class gives its images of the lowest hashes. Returns (rest_index, test_index), int64 in ascending order;
    together they hold every index once.

    Raises ValueError for a fraction outside [0, 1) or a limit below 1.
    """
    if not 0 <= fraction < 1 or most < 1:
        raise ValueError(f"the test fraction must be in [0, 1) and its limit positive, not {fraction} and {most}")
    label_N = np.asarray(label_N)
    order_N = np.lexsort((hash_words(RngStream.TEST, seed, np.arange(len(label_N))), label_N))
    _, start_C, count_C = np.unique(label_N[order_N], return_index=True, return_counts=True)
    quota_C = np.minimum(np.clip((count_C * fraction).astype(np.int64), 1, most), count_C - 1) * (fraction > 0)
    in_test_N = np.zeros(len(label_N), dtype=bool)
    in_test_N[order_N] = np.arange(len(label_N)) - np.repeat(start_C, count_C) < np.repeat(quota_C, count_C)
    return np.flatnonzero(~in_test_N), np.flatnonzero(in_test_N)
