"""Both searches by one engine, in one process or with the database's rows split over torchrun's.

P probes, G gallery rows, S prefixes, K neighbours.

Search with the database's rows split over processes: each searches its own range, the results are merged.

Scores are exact and depend on no position, so that the result is that of one process to the last bit.

P probes, G gallery rows, S prefixes, K neighbours, R ranks.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.search.engine import Engine
from facelt.search.exact import BadRow, Best, Rows
from facelt.search.factory import EngineName, open_engine
from facelt.search.top_k import count_above, top_k
from recordio_tools.progress import ProgressFn, no_progress


class Search:
    """`top_k` and `count_above` by one engine; `is_first` is true of the process that speaks for all."""

    is_first = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def top_k(
        self,
        query_PD: np.ndarray,
        database_GD: Rows,
        k: int,
        prefixes: Sequence[int],
        *,
        cosine: bool,
        progress: ProgressFn = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float64 and positions int64 [S,P,K]: see `facelt.search.top_k`."""
        return top_k(query_PD, database_GD, k, prefixes, cosine=cosine, engine=self.engine, progress=progress)

    def count_above(
        self, query_PD: np.ndarray, database_GD: Rows, threshold: float, *, progress: ProgressFn = no_progress
    ) -> np.ndarray:
        """Counts int64 [P]: see `facelt.search.count_above`."""
        return count_above(query_PD, database_GD, threshold, engine=self.engine, progress=progress)


def open_search(name: EngineName = "auto", pairs: int = 0) -> Search:
    """A search by the engine of that name, split over all processes where torchrun started several.

    `pairs` is about how many are to be scored: see `open_engine`.

    Raises UserError where the engine is not installed.
    """
    engine = open_engine(name, pairs)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Search(engine)

    return SplitSearch(engine)


class SplitSearch(Search):
    """A search whose ranks call it together with the same arguments and all get the whole result.

    Talks over gloo: what is exchanged, P x K results a rank, lies in the processor's memory whatever the engine is.
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
        database_GD: Rows,
        k: int,
        prefixes: Sequence[int],
        *,
        cosine: bool,
        progress: ProgressFn = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Search."""
        shard = self._shard(database_GD)
        own = [min(max(size - shard.start, 0), shard.shape[0]) for size in prefixes]
        score_SPK, id_SPK = self._together(
            shard.start, lambda: Search.top_k(self, query_PD, shard, k, own, cosine=cosine, progress=progress)
        )
        id_SPK[id_SPK >= 0] += shard.start
        score_RSPK, id_RSPK = self._gathered(score_SPK), self._gathered(id_SPK)
        merged = [_merged(score_RSPK[:, place], id_RSPK[:, place]) for place in range(len(own))]
        return np.stack([best.score_PK for best in merged]), np.stack([best.id_PK for best in merged])

    def count_above(
        self, query_PD: np.ndarray, database_GD: Rows, threshold: float, *, progress: ProgressFn = no_progress
    ) -> np.ndarray:
        """See Search."""
        shard = self._shard(database_GD)
        count_P = self._together(
            shard.start, lambda: Search.count_above(self, query_PD, shard, threshold, progress=progress)
        )
        return self._gathered(count_P).sum(axis=0)

    def _shard(self, database_GD: Rows) -> "_Shard":
        total = database_GD.shape[0]
        return _Shard(database_GD, total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def _together(self, start: int, search: Callable[[], Any]) -> Any:
        """What `search` returns, once all ranks have it; what one of them cannot score is raised on all."""
        import torch.distributed as dist

        found, failure = None, None
        try:
            found = search()
        except BadRow as error:
            failure = (error.side, error.row + (start if error.side == "database" else 0), error.reason)
        except UserError as error:
            failure = (str(error),)
        failures: list[tuple | None] = [None] * self.world
        dist.all_gather_object(failures, failure)
        for said in filter(None, failures):
            raise BadRow(*said) if len(said) == 3 else UserError(*said)
        return found

    def _gathered(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks, stacked in rank order."""
        import torch
        import torch.distributed as dist

        own = torch.from_numpy(np.ascontiguousarray(array))
        all_of_them = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(all_of_them, own)
        return np.stack([one.numpy() for one in all_of_them])


class _Shard:
    """The rows start..stop of a database."""

    def __init__(self, rows_GD: Rows, start: int, stop: int) -> None:
        self._rows_GD, self.start = rows_GD, start
        self.shape = (stop - start, rows_GD.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._rows_GD[self.start + rows.start : self.start + rows.stop]


def _merged(score_RPK: np.ndarray, id_RPK: np.ndarray) -> Best:
    """The K best of all ranks' best."""
    best = Best(score_RPK[0], id_RPK[0])
    for score_PK, id_PK in zip(score_RPK[1:], id_RPK[1:], strict=True):
        probe_M, place_M = np.nonzero(id_PK >= 0)
        best = best.merged(probe_M, score_PK[probe_M, place_M], id_PK[probe_M, place_M])
    return best
