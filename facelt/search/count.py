"""How many database rows are more similar to a query row than a threshold.

P probes, G gallery rows, B rows of a block, M pairs.
"""

from collections.abc import Callable

import numpy as np

from facelt.search.blocks import Rows, block_rows, check_dimensions, prepare, stream
from facelt.search.engine import Engine, FaissEngine
from facelt.search.exact import cosine_bound, similarities

# Scores held at once; the pairs above a low threshold can be nearly as many.
SCORES = 1 << 22


def count_above(
    query_PD: np.ndarray,
    database_GD: Rows,
    threshold: float,
    *,
    engine: Engine | None = None,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Number [P] of rows whose cosine similarity is strictly above `threshold`, int64; any lengths but zero.

    A similarity within float32's rounding of the threshold is computed again in float64, so that counts are exact.
    Raises BadRow on a row that is not finite or has length zero, UserError on unequal dimensions.
    """
    check_dimensions(query_PD, database_GD)
    total, dimension = database_GD.shape
    engine = engine or FaissEngine()
    query = prepare(query_PD, "query", cosine=True)
    slack = cosine_bound(dimension)
    count_P = np.zeros(len(query), dtype=np.int64)
    rows = max(1, min(block_rows(dimension), SCORES // max(1, len(query))))
    for block in stream(database_GD, [total], cosine=True, rows=rows):
        query_M, row_M, score_M = engine.pairs_above(query.rough_BD, block.rough_BD, threshold - slack)
        close_M = np.abs(score_M - threshold) <= slack
        exact_M = similarities(query.raw_BD, query_M[close_M], block.raw_BD, row_M[close_M], cosine=True)
        above_M = ~close_M
        above_M[close_M] = exact_M > threshold
        count_P += np.bincount(query_M[above_M], minlength=len(query))
        if advance:
            advance(len(block))
    return count_P
