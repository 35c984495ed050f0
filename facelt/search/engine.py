"""What a search engine must do for one block; all else (streaming, exact scores, merging, ties) is common to all.

P probes, B rows of a block, D feature, M pairs.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

# Scores held at once; the pairs above a low threshold can be nearly as many.
SCORES = 1 << 22

# Query row [M], block row [M], score [M].
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Scorer(Protocol):
    """Inner products of one query with one block after another, rounded as `take` says."""

    def take(self, block_BD: np.ndarray) -> float:
        """Turn to a block. Returns the error beyond a float32 product's, as a share of the lengths of both rows."""
        ...

    def best(self, k: int, floor_P: np.ndarray) -> tuple[Pairs, np.ndarray]:
        """Pairs that score at least `floor_P`, as many of them as are among each query row's k best.

        Also how much a pair that was left out can score [P]: -inf where none at or above the floor was.
        """
        ...

    def above(self, floor: float) -> Iterator[Pairs]:
        """All pairs that score more than `floor`, in pieces of no more than SCORES pairs."""
        ...


class Engine(Protocol):
    """Scores may be rounded: `top_k` and `count_above` compute again what is close."""

    name: str

    def open(self, query_PD: np.ndarray) -> Scorer:
        """A scorer for the rows of a query, float32."""
        ...
