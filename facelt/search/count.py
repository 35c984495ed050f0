"""How many database rows are more similar to a query row than a threshold.

P probes, G gallery rows, B rows of a block, M pairs.
"""

from collections.abc import Callable

import numpy as np

from facelt.search.blocks import BadRow, Rows, block_rows, check_dimensions, checked, stream
from facelt.search.engine import Engine, FaissEngine
from facelt.search.exact import error_bound, inner_products

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
    query_PD = checked(query_PD, "query")
    unit_PD = _unit(query_PD, "query", 0)
    # Two roundings of the normalisation on top of the product's own.
    slack = error_bound(dimension + 4) * 2
    count_P = np.zeros(len(query_PD), dtype=np.int64)
    rows = max(1, min(block_rows(dimension), SCORES // max(1, len(query_PD))))
    for start, block_BD in stream(database_GD, [total], unit=False, rows=rows):
        unit_BD = _unit(block_BD, "database", start)
        query_M, row_M, score_M = engine.pairs_above(unit_PD, unit_BD, threshold - slack)
        close_M = np.abs(score_M - threshold) <= slack
        above_M = ~close_M
        above_M[close_M] = _cosine(query_PD, query_M[close_M], block_BD, row_M[close_M]) > threshold
        count_P += np.bincount(query_M[above_M], minlength=len(query_PD))
        if advance:
            advance(len(block_BD))
    return count_P


def _unit(rows_BD: np.ndarray, side: str, start: int) -> np.ndarray:
    length_B1 = np.linalg.norm(rows_BD, axis=1, keepdims=True)
    if len(rows_BD) and not length_B1.all():
        raise BadRow(side, start + int(np.argmin(length_B1)), "has length zero")
    return rows_BD / length_B1


def _cosine(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    square_M = inner_products(left_ND, left_M, left_ND, left_M) * inner_products(right_ND, right_M, right_ND, right_M)
    return inner_products(left_ND, left_M, right_ND, right_M) / np.sqrt(square_M)
