"""What a search engine must do for one block; all else (streaming, merging, ties) is common to all engines.

P probes, B rows of a block, K neighbours, D feature, M pairs.
"""

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Scores may be rounded as float32 products are: `top_k` and `count_above` re-score what is close."""

    def nearest(self, query_PD: np.ndarray, block_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k <= B largest inner products of each query row: scores [P,K] descending and rows [P,K]."""
        ...

    def pairs_above(
        self, query_PD: np.ndarray, block_BD: np.ndarray, floor: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs whose inner product is above `floor`: query row [M], block row [M], score [M]."""
        ...


class FaissEngine:
    """faiss's flat search (Douze et al., The Faiss library, 2024) on the CPU, on faiss's default number of threads."""

    def nearest(self, query_PD: np.ndarray, block_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See Engine."""
        import faiss

        return faiss.knn(query_PD, block_BD, k, metric=faiss.METRIC_INNER_PRODUCT)

    def pairs_above(
        self, query_PD: np.ndarray, block_BD: np.ndarray, floor: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See Engine. A plain product: faiss's range search is no faster when both sides are matrices."""
        score_PB = query_PD @ block_BD.T
        flat_M = np.flatnonzero(score_PB > floor)
        query_M, row_M = np.divmod(flat_M, max(1, score_PB.shape[1]))
        return query_M, row_M, score_PB.ravel()[flat_M]
