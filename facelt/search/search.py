"""Both searches by one engine, in one process or with the database's rows split over torchrun's.

P probes, G gallery rows, S prefixes, K neighbours.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from facelt.search.blocks import Rows
from facelt.search.count import count_above
from facelt.search.engine import Engine, EngineName, open_engine
from facelt.search.top_k import top_k

# Told how many rows a search has done.
Advance = Callable[[int], None]


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
        advance: Advance | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float64 and positions int64 [S,P,K]: see `facelt.search.top_k`."""
        return top_k(query_PD, database_GD, k, prefixes, cosine=cosine, engine=self.engine, advance=advance)

    def count_above(
        self, query_PD: np.ndarray, database_GD: Rows, threshold: float, *, advance: Advance | None = None
    ) -> np.ndarray:
        """Counts int64 [P]: see `facelt.search.count_above`."""
        return count_above(query_PD, database_GD, threshold, engine=self.engine, advance=advance)


def open_search(name: EngineName = "auto", pairs: int = 0) -> Search:
    """A search by the engine of that name, split over all processes where torchrun started several.

    `pairs` is about how many are to be scored: see `open_engine`.

    Raises UserError where the engine is not installed.
    """
    engine = open_engine(name, pairs)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Search(engine)
    from facelt.search.split import SplitSearch

    return SplitSearch(engine)
