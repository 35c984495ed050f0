"""Search engine: faiss's flat search (Douze et al., The Faiss library, 2024).

P probes, B rows of a block, D feature, M pairs.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from facelt.search import engine
from facelt.search.engine import ScoredPairs

# Neighbours fetched in addition to k, so that rounding does not hide one of the k best.
EXTRA_NEIGHBOURS = 6
# faiss's limit of neighbours on a GPU.
GPU_NEIGHBOURS = 2048


class FaissEngine:
    """faiss on a GPU if it was built for one and finds one, else on the CPU with faiss's default number of threads."""

    name = "faiss"

    def __init__(self) -> None:
        import faiss

        # The CPU build has this function as well and returns 0.
        self.gpus = faiss.get_num_gpus()
        self.resources = faiss.StandardGpuResources() if self.gpus else None

    def open(self, query_PD: np.ndarray) -> "FaissScorer":
        """See Engine.open."""
        import faiss

        query_PD = np.ascontiguousarray(query_PD)
        if self.resources is None:
            return FaissScorer(query_PD, partial(faiss.knn, metric=faiss.METRIC_INNER_PRODUCT))
        device = int(os.environ.get("LOCAL_RANK", 0)) % self.gpus
        knn = partial(faiss.knn_gpu, self.resources, metric=faiss.METRIC_INNER_PRODUCT, device=device)
        return GpuScorer(query_PD, knn)


class FaissScorer:
    """Scorer on the CPU; `knn(query_PD, block_BD, k)` returns scores, descending, and rows, [P,k] each."""

    score_rounding = 0.0

    def __init__(self, query_PD: np.ndarray, knn: Callable) -> None:
        self.query_PD, self.knn = query_PD, knn

    def set_block(self, block_BD: np.ndarray) -> float:
        """See Scorer.set_block: plain float32 products."""
        self.block_BD = block_BD
        return 0.0

    def topk(self, k: int, floor_P: np.ndarray) -> tuple[ScoredPairs, np.ndarray]:
        """See Scorer.topk."""
        score_PN, row_PN = self.knn(self.query_PD, self.block_BD, min(k + EXTRA_NEIGHBOURS, len(self.block_BD)))
        is_complete = score_PN.shape[1] == len(self.block_BD)
        omitted_P = np.full(len(floor_P), -np.inf) if is_complete else score_PN[:, -1].astype(np.float64)
        return _select(score_PN, row_PN, score_PN >= floor_P[:, None]), omitted_P

    def range_search(self, floor: float) -> Iterator[ScoredPairs]:
        """See Scorer.range_search. Plain products: faiss's range search is no faster for two matrices."""
        tile = max(1, engine.MAX_TILE_SCORES // max(1, len(self.query_PD)))
        for start in range(0, len(self.block_BD), tile):
            score_PT = self.query_PD @ self.block_BD[start : start + tile].T
            flat_M = np.flatnonzero(score_PT > floor)
            query_M, row_M = np.divmod(flat_M, score_PT.shape[1])
            yield query_M, row_M + start, score_PT.ravel()[flat_M]


class GpuScorer(FaissScorer):
    """Scorer on a GPU."""

    def range_search(self, floor: float) -> Iterator[ScoredPairs]:
        """See Scorer.range_search: increases k until the last neighbour is below the floor."""
        k, rows = 16, len(self.block_BD)
        while k < min(rows, GPU_NEIGHBOURS):
            score_PN, row_PN = self.knn(self.query_PD, self.block_BD, k)
            if (score_PN[:, -1] <= floor).all():
                yield _select(score_PN, row_PN, score_PN > floor)
                return
            k *= 4
        yield from super().range_search(floor)


def _select(score_PN: np.ndarray, row_PN: np.ndarray, is_selected_PN: np.ndarray) -> ScoredPairs:
    query_M, column_M = np.nonzero(is_selected_PN)
    return query_M, row_PN[query_M, column_M], score_PN[query_M, column_M]
