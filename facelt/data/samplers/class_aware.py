"""OLTR's class-aware sampling: a few images of one class after another.

Shapes: N images, K classes that have images, T = steps * batch draws of an epoch.
"""

import numpy as np

from facelt.data.hashing import Stream, hash64
from facelt.data.samplers.sampler import TrainingSampler


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

    def epoch(self, epoch: int) -> np.ndarray:
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
        return np.argsort(hash64(Stream.CLASS_ORDER, self.seed, cycle_R1, class_K), axis=1)

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
        key_S = hash64(Stream.IMAGE_ORDER, self.seed, class_Q[pair_S], round_Q[pair_S], image_S)
        order_S = np.lexsort((key_S, pair_S))
        return image_S[order_S[(end_Q - count_Q)[pair_T] + offset_T]]
