"""Search engine interface: inner products of a query matrix with one block of database rows.

Streaming, exact scores, merging and ties are common to all engines (`facelt.search.top_k`).

P probes, B rows of a block, D feature, M pairs.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

# Scores held in memory at once; a range search with a low threshold can return nearly as many pairs.
MAX_TILE_SCORES = 1 << 22

# Query row [M], block row [M], score [M].
ScoredPairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Scorer(Protocol):
    """Inner products of one query matrix with one block at a time; `set_block` returns their rounding error.

    Scores are returned rounded by up to `score_rounding` times their magnitude, which that error does not include.
    """

    score_rounding: float

    def set_block(self, block_BD: np.ndarray) -> float:
        """Selects a block. Returns the error in excess of a float32 product's, relative to the norms of both rows."""
        ...

    def topk(self, k: int, floor_P: np.ndarray) -> tuple[ScoredPairs, np.ndarray]:
        """Returns the pairs with a product of at least `floor_P` that can be among the k best of their query row.

        The second value [P] bounds the products of omitted pairs: -inf if none at or above the floor was omitted.
        """
        ...

    def range_search(self, floor: float) -> Iterator[ScoredPairs]:
        """Yields all pairs with a product above `floor`, at most MAX_TILE_SCORES pairs at a time."""
        ...


class Engine(Protocol):
    """Factory of scorers. Scores may be rounded: `top_k` and `count_above` recompute the close ones exactly."""

    name: str

    def open(self, query_PD: np.ndarray) -> Scorer:
        """Returns a scorer for query rows, float32 [P,D]."""
        ...
