"""Which images a step sees, as pure functions of (seed, epoch, global position).

Nothing here knows ranks or workers: they take their share of what a sampler lists, so the sequence of global batches
never depends on them, and a run resumed at any step sees exactly what is left.

Shapes: N images of the set, K classes that have images, T = steps * batch draws of an epoch.
"""

from abc import ABC, abstractmethod

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


def _members(label_N: np.ndarray, members: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Dataset indices to draw from and their labels; label -1 (open set) is never trained on."""
    label_N = np.asarray(label_N, dtype=np.int64)
    member_M = np.arange(len(label_N)) if members is None else np.asarray(members, dtype=np.int64)
    member_M = member_M[label_N[member_M] >= 0]
    return member_M, label_N[member_M]


def _full_steps(images: int, batch: int) -> int:
    """Steps of an epoch whose last partial batch is dropped."""
    if images < batch:
        raise UserError(f"{images} training images are fewer than one batch of {batch}: lower the batch size")
    return images // batch


class InstanceSampler(Sampler):
    """Every image once an epoch in a fresh order; the last partial batch is dropped.

    `members` restricts the draws to those dataset indices (a training split); `labels` are always the whole dataset's.
    """

    def __init__(self, labels: np.ndarray, batch: int, seed: int, members: np.ndarray | None = None) -> None:
        self._member_M, _ = _members(labels, members)
        super().__init__(batch, _full_steps(len(self._member_M), batch), seed)

    def epoch(self, epoch: int) -> np.ndarray:
        key_M = hash64(Stream.INSTANCE_ORDER, self.seed, epoch, np.arange(len(self._member_M)))
        return self._member_M[np.argsort(key_M)[: self.steps_per_epoch * self.batch]]


class ClassAwareSampler(Sampler):
    """OLTR's class-aware sampling: `per_class` consecutive images of one class after another.

    The classes come in shuffled cycles; each class steps through its own images in shuffled cycles, `per_class` at a
    visit, wrapping round where it has fewer. An epoch has floor(N / batch) steps; classes without images are left out.

    Both cycles go on over epochs: the draws are one endless sequence of which an epoch is a window. A head class gives
    an epoch only a part of its images, and going on is what makes it show all of them before it repeats one; restarting
    each epoch would leave the coverage of its images to chance.
    """

    def __init__(
        self, labels: np.ndarray, batch: int, seed: int, members: np.ndarray | None = None, *, per_class: int = 4
    ) -> None:
        member_M, label_M = _members(labels, members)
        super().__init__(batch, _full_steps(len(member_M), batch), seed)
        self.per_class = per_class
        self._member_M = member_M[np.argsort(label_M, kind="stable")]
        _, self._start_K, self._count_K = np.unique(np.sort(label_M), return_index=True, return_counts=True)

    def epoch(self, epoch: int) -> np.ndarray:
        total = self.steps_per_epoch * self.batch
        position_T = np.arange(epoch * total, (epoch + 1) * total)
        visit_T = position_T // self.per_class
        cycle_T, slot_T = np.divmod(visit_T, len(self._count_K))
        class_T = self._class_order(cycle_T[0], cycle_T[-1])[cycle_T - cycle_T[0], slot_T]
        # A class is visited once a cycle, so how many of its images came before follows from the cycle alone.
        round_T, offset_T = np.divmod(cycle_T * self.per_class + position_T % self.per_class, self._count_K[class_T])
        return self._member_M[self._start_K[class_T] + self._shuffled(class_T, round_T, offset_T)]

    def _class_order(self, first: int, last: int) -> np.ndarray:
        """The shuffled classes of cycles first..last, int64 [cycles,K]."""
        cycle_R1 = np.arange(first, last + 1)[:, None]
        return np.argsort(hash64(Stream.CLASS_ORDER, self.seed, cycle_R1, np.arange(len(self._count_K))), axis=1)

    def _shuffled(self, class_T: np.ndarray, round_T: np.ndarray, offset_T: np.ndarray) -> np.ndarray:
        """Position within its class of each draw: place `offset` of that class's order in round `round`.

        All (class, round) pairs in use are shuffled by one sort: at most T + 2N images, since all but the first and the
        last round of a class are drawn whole.
        """
        rounds = int(round_T.max()) + 1
        pair_Q, pair_T = np.unique(class_T * rounds + round_T, return_inverse=True)
        class_Q, round_Q = np.divmod(pair_Q, rounds)
        count_Q = self._count_K[class_Q]
        end_Q = np.cumsum(count_Q)
        pair_S = np.repeat(np.arange(len(pair_Q)), count_Q)
        image_S = np.arange(end_Q[-1]) - (end_Q - count_Q)[pair_S]
        key_S = hash64(Stream.IMAGE_ORDER, self.seed, class_Q[pair_S], round_Q[pair_S], image_S)
        order_S = np.lexsort((key_S, pair_S))
        return image_S[order_S[(end_Q - count_Q)[pair_T] + offset_T]]


class SequentialSampler(Sampler):
    """Every image once, in order, the last partial batch kept: for evaluation, embedding and memory passes."""

    def __init__(self, count: int, batch: int, members: np.ndarray | None = None) -> None:
        self._member_M = np.arange(count) if members is None else np.asarray(members, dtype=np.int64)
        super().__init__(batch, -(-len(self._member_M) // batch), seed=0)

    def epoch(self, epoch: int) -> np.ndarray:
        return self._member_M


SAMPLERS = {"instance": InstanceSampler, "class_aware": ClassAwareSampler}
"""Training samplers by name; each is built as (labels, batch, seed, members=None)."""
