"""faiss's flat search (Douze et al., The Faiss library, 2024). P probes, B rows of a block, D feature, M pairs."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from facelt.search import engine
from facelt.search.engine import Pairs

# Fetched beyond k, so that the rounding cannot push one of the k best out of sight.
SPARE = 6
# faiss's own limit of neighbours on a GPU.
GPU_NEIGHBOURS = 2048


class FaissEngine:
    """On a GPU where faiss was built for one and sees one, else on the CPU, on faiss's default number of threads."""

    name = "faiss"

    def __init__(self) -> None:
        import faiss

        # The CPU's build has the function too, and counts no GPU.
        self.gpus = faiss.get_num_gpus()
        self.resources = faiss.StandardGpuResources() if self.gpus else None

    def open(self, query_PD: np.ndarray) -> "FaissScorer":
        """See Engine."""
        query_PD = np.ascontiguousarray(query_PD)
        if self.resources is None:
            return FaissScorer(query_PD)
        return GpuScorer(query_PD, self.resources, int(os.environ.get("LOCAL_RANK", 0)) % self.gpus)


class FaissScorer:
    """See Scorer; on the CPU."""

    def __init__(self, query_PD: np.ndarray) -> None:
        self.query_PD = query_PD

    def take(self, block_BD: np.ndarray) -> float:
        """See Scorer: plain float32 products."""
        self.block_BD = block_BD
        return 0.0

    def best(self, k: int, floor_P: np.ndarray) -> tuple[Pairs, np.ndarray]:
        """See Scorer."""
        score_PN, row_PN = self._nearest(min(k + SPARE, len(self.block_BD)))
        everything = score_PN.shape[1] == len(self.block_BD)
        left_P = np.full(len(floor_P), -np.inf) if everything else score_PN[:, -1].astype(np.float64)
        return _chosen(score_PN, row_PN, score_PN >= floor_P[:, None]), left_P

    def above(self, floor: float) -> Iterator[Pairs]:
        """See Scorer. Plain products: faiss's range search is no faster when both sides are matrices."""
        tile = max(1, engine.SCORES // max(1, len(self.query_PD)))
        for start in range(0, len(self.block_BD), tile):
            score_PT = self.query_PD @ self.block_BD[start : start + tile].T
            flat_M = np.flatnonzero(score_PT > floor)
            query_M, row_M = np.divmod(flat_M, score_PT.shape[1])
            yield query_M, row_M + start, score_PT.ravel()[flat_M]

    def _nearest(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k largest inner products of each query row, descending [P,K], and their rows."""
        import faiss

        return faiss.knn(self.query_PD, self.block_BD, k, metric=faiss.METRIC_INNER_PRODUCT)


class GpuScorer(FaissScorer):
    """See Scorer; on a GPU."""

    def __init__(self, query_PD: np.ndarray, resources: Any, device: int) -> None:
        super().__init__(query_PD)
        self.resources, self.device = resources, device

    def above(self, floor: float) -> Iterator[Pairs]:
        """See Scorer: ever more neighbours until the last is below the floor; few are above a useful one."""
        k, rows = 16, len(self.block_BD)
        while k < min(rows, GPU_NEIGHBOURS):
            score_PN, row_PN = self._nearest(k)
            if (score_PN[:, -1] <= floor).all():
                yield _chosen(score_PN, row_PN, score_PN > floor)
                return
            k *= 4
        yield from super().above(floor)

    def _nearest(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        return faiss.knn_gpu(
            self.resources, self.query_PD, self.block_BD, k, metric=faiss.METRIC_INNER_PRODUCT, device=self.device
        )


def _chosen(score_PN: np.ndarray, row_PN: np.ndarray, is_chosen_PN: np.ndarray) -> Pairs:
    query_M, column_M = np.nonzero(is_chosen_PN)
    return query_M, row_PN[query_M, column_M], score_PN[query_M, column_M]
