"""What averaging several experts wins and loses, image by image.

Shapes: K experts, N test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facelt.metrics.labels import OPEN_LABEL, checked_pair


@dataclass(frozen=True)
class ExpertCounts:
    """Counts of known images. Of each expert in turn: those it gets right, those it gets right and the average wrong,
    and those the average gets right and it wrong.

    `some_right` are those the average gets wrong and one expert or more right, `none_right` those that it gets right
    and no expert does.
    """

    images: int
    average_right: int
    right: tuple[int, ...]
    lost: tuple[int, ...]
    won: tuple[int, ...]
    some_right: int
    none_right: int


def expert_counts(label_N: np.ndarray, expert_KN: Sequence[np.ndarray], average_N: np.ndarray) -> ExpertCounts:
    """Counts from true classes, each expert's predictions and those of their average; open images (-1) are left out.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: arrays of different lengths, no vectors or no integers.
    """
    label_N, average_N = checked_pair(label_N, average_N)
    known_N = label_N != OPEN_LABEL
    average_N = (average_N == label_N)[known_N]
    right_KN = np.array([(checked_pair(label_N, one_N)[1] == label_N)[known_N] for one_N in expert_KN])
    some_N = right_KN.any(axis=0)

    def count(right_KN: np.ndarray) -> tuple[int, ...]:
        return tuple(right_KN.sum(axis=1).tolist())

    return ExpertCounts(
        images=int(known_N.sum()),
        average_right=int(average_N.sum()),
        right=count(right_KN),
        lost=count(right_KN & ~average_N),
        won=count(~right_KN & average_N),
        some_right=int((some_N & ~average_N).sum()),
        none_right=int((average_N & ~some_N).sum()),
    )
