"""How many database rows are more similar to a query row than a threshold.

P probes, G gallery rows, M pairs.
"""

from collections.abc import Callable

import numpy as np

from facelt.search.blocks import Rows, check_dimensions, prepare, rounding, stream
from facelt.search.engine import Engine, open_engine
from facelt.search.exact import similarities


def count_above(
    query_PD: np.ndarray,
    database_GD: Rows,
    threshold: float,
    *,
    engine: Engine | None = None,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Number [P] of rows whose cosine similarity is strictly above `threshold`, int64; any lengths but zero.

    A similarity within the engine's rounding of the threshold is computed again in float64, so that counts are exact.
    Raises BadRow on a row that is not finite or has length zero, UserError on unequal dimensions.
    """
    check_dimensions(query_PD, database_GD)
    total = database_GD.shape[0]
    query = prepare(query_PD, "query", cosine=True)
    scorer = (engine or open_engine()).open(query.rough_BD)
    count_P = np.zeros(len(query), dtype=np.int64)
    for block in stream(database_GD, [total], cosine=True):
        slack = float(rounding(query, block, scorer.take(block.rough_BD), cosine=True).max(initial=0.0))
        for query_M, row_M, score_M in scorer.above(threshold - slack):
            close_M = np.abs(score_M - threshold) <= slack
            exact_M = similarities(query.raw_BD, query_M[close_M], block.raw_BD, row_M[close_M], cosine=True)
            above_M = ~close_M
            above_M[close_M] = exact_M > threshold
            count_P += np.bincount(query_M[above_M], minlength=len(query))
        if advance:
            advance(len(block))
    return count_P
