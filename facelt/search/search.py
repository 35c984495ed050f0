"""Search in one process, or with the database rows split over the processes of torchrun.

Each rank searches a range of rows and the results are merged. Scores are exact and independent of position, so the
result equals that of one process to the last bit.

P probes, G gallery rows, S prefixes, K neighbours, R ranks.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.search.engine import Engine
from facelt.search.exact import BadRow, MatrixLike, TopK
from facelt.search.factory import EngineName, open_engine
from facelt.search.top_k import count_above, top_k
from recordio_tools.progress import ProgressFn, no_progress


class Search:
    """`top_k` and `count_above` with one engine; `is_first` is true in the process that reports results."""

    is_first = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def top_k(
        self,
        query_PD: np.ndarray,
        database_GD: MatrixLike,
        k: int,
        prefixes: Sequence[int],
        *,
        cosine: bool,
        progress: ProgressFn = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores float64 and positions int64, [S,P,K] each; see `facelt.search.top_k.top_k`."""
        return top_k(query_PD, database_GD, k, prefixes, cosine=cosine, engine=self.engine, progress=progress)

    def count_above(
        self, query_PD: np.ndarray, database_GD: MatrixLike, threshold: float, *, progress: ProgressFn = no_progress
    ) -> np.ndarray:
        """Returns counts int64 [P]; see `facelt.search.top_k.count_above`."""
        return count_above(query_PD, database_GD, threshold, engine=self.engine, progress=progress)


def open_search(name: EngineName = "auto", pairs: int = 0) -> Search:
    """Returns a search with the engine of that name, split over the processes of torchrun if there are several.

    `pairs` is the approximate number of scores: see `open_engine`. Raises UserError if the engine is not installed.
    """
    engine = open_engine(name, pairs)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Search(engine)
    return SplitSearch(engine)


class SplitSearch(Search):
    """Search split over ranks: all ranks call it with the same arguments and get the whole result.

    Communicates over gloo, since the P x K results of a rank are in host memory with every engine.
    """

    def __init__(self, engine: Engine) -> None:
        import torch.distributed as dist

        super().__init__(engine)
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.is_first = self.rank == 0

    def top_k(
        self,
        query_PD: np.ndarray,
        database_GD: MatrixLike,
        k: int,
        prefixes: Sequence[int],
        *,
        cosine: bool,
        progress: ProgressFn = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Search."""
        shard = self._shard(database_GD)
        local = [min(max(size - shard.start, 0), shard.shape[0]) for size in prefixes]
        score_SPK, id_SPK = self._on_all_ranks(
            shard.start, lambda: Search.top_k(self, query_PD, shard, k, local, cosine=cosine, progress=progress)
        )
        id_SPK[id_SPK >= 0] += shard.start
        score_RSPK, id_RSPK = self._all_gather(score_SPK), self._all_gather(id_SPK)
        merged = [_merge_ranks(score_RSPK[:, index], id_RSPK[:, index]) for index in range(len(local))]
        return np.stack([best.score_PK for best in merged]), np.stack([best.id_PK for best in merged])

    def count_above(
        self, query_PD: np.ndarray, database_GD: MatrixLike, threshold: float, *, progress: ProgressFn = no_progress
    ) -> np.ndarray:
        """See Search."""
        shard = self._shard(database_GD)
        count_P = self._on_all_ranks(
            shard.start, lambda: Search.count_above(self, query_PD, shard, threshold, progress=progress)
        )
        return self._all_gather(count_P).sum(axis=0)

    def _shard(self, database_GD: MatrixLike) -> "_Shard":
        total = database_GD.shape[0]
        return _Shard(database_GD, total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def _on_all_ranks(self, start: int, search: Callable[[], Any]) -> Any:
        """Returns the result of `search` once all ranks have theirs; an error on one rank is raised on all."""
        import torch.distributed as dist

        result, failure = None, None
        try:
            result = search()
        except BadRow as error:
            failure = (error.side, error.row + (start if error.side == "database" else 0), error.reason)
        except UserError as error:
            failure = (str(error),)
        failures: list[tuple | None] = [None] * self.world
        dist.all_gather_object(failures, failure)
        for arguments in filter(None, failures):
            raise BadRow(*arguments) if len(arguments) == 3 else UserError(*arguments)
        return result

    def _all_gather(self, array: np.ndarray) -> np.ndarray:
        """Returns the arrays of all ranks, stacked in rank order."""
        import torch
        import torch.distributed as dist

        local = torch.from_numpy(np.ascontiguousarray(array))
        gathered = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(gathered, local)
        return np.stack([tensor.numpy() for tensor in gathered])


class _Shard:
    """Rows start..stop of a database."""

    def __init__(self, rows_GD: MatrixLike, start: int, stop: int) -> None:
        self._rows_GD, self.start = rows_GD, start
        self.shape = (stop - start, rows_GD.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._rows_GD[self.start + rows.start : self.start + rows.stop]


def _merge_ranks(score_RPK: np.ndarray, id_RPK: np.ndarray) -> TopK:
    """Returns the K best of all ranks."""
    best = TopK(score_RPK[0], id_RPK[0])
    for score_PK, id_PK in zip(score_RPK[1:], id_RPK[1:], strict=True):
        probe_M, rank_M = np.nonzero(id_PK >= 0)
        best = best.merge(probe_M, score_PK[probe_M, rank_M], id_PK[probe_M, rank_M])
    return best
