"""The k best database rows of every query row, for nested galleries, in one pass.

P probes, U some of them, G gallery rows, B rows of a block, S prefixes, K neighbours, M pairs, N rows found for one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from facelt.search.best import Best
from facelt.search.blocks import BLOCK_VALUES, Block, Rows, check_dimensions, prepare, rounding, stream
from facelt.search.engine import Engine, Scorer, open_engine
from facelt.search.exact import similarities

# Taken beyond k where a whole block is searched in float64, whose own rounding is far below this many ties.
TIES = 12


def top_k(
    query_PD: np.ndarray,
    database_GD: Rows,
    k: int,
    prefixes: Sequence[int] | None = None,
    *,
    cosine: bool = False,
    engine: Engine | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search by inner product or cosine: scores float64 [S,P,K] descending and positions int64 [S,P,K].

    For each of `prefixes` (by default G alone) the result is that of a gallery of the first so many rows. Equal scores
    come in the order of position, and equal rows score equally, whatever the engine is. Where a
    gallery has fewer than k rows the rest is -inf and -1. `advance(rows)` is called after each block. Never more than
    a few blocks of the database, their scores in pieces, and the results are in memory.

    Raises BadRow on a row that is not finite or, for cosines, has length zero; UserError on unequal dimensions;
    ValueError on a prefix beyond G.
    """
    check_dimensions(query_PD, database_GD)
    total = database_GD.shape[0]
    sizes = [total] if prefixes is None else list(prefixes)
    if k < 1 or any(not 0 <= size <= total for size in sizes):
        raise ValueError(f"k = {k} must be positive and the prefixes {sizes} within the {total} rows")
    query = prepare(query_PD, "query", cosine=cosine)
    scorer = (engine or open_engine()).open(query.rough_BD)
    best = Best.none(len(query), k)
    found = {0: best}
    for block in stream(database_GD, sizes, cosine=cosine):
        best = _with_block(best, scorer, query, block, cosine=cosine)
        if (done := block.start + len(block)) in sizes:
            found[done] = best
        if advance:
            advance(len(block))
    return np.stack([found[size].score_PK for size in sizes]), np.stack([found[size].id_PK for size in sizes])


def _with_block(best: Best, scorer: Scorer, query: Block, block: Block, *, cosine: bool) -> Best:
    """The best so far and of this block, by exact scores of all that can be among them."""

    def merged(query_M: np.ndarray, row_M: np.ndarray) -> Best:
        score_M = similarities(query.raw_BD, query_M, block.raw_BD, row_M, cosine=cosine)
        return best.merged(query_M, score_M, row_M + block.start)

    k = best.score_PK.shape[1]
    slack_P = rounding(query, block, scorer.take(block.rough_BD), cosine=cosine)
    (query_M, row_M, _), left_P = scorer.best(k, best.score_PK[:, -1] - slack_P)
    best = merged(query_M, row_M)
    # A row that the engine left out scores at most so much and the rounding.
    (open_U,) = np.nonzero((left_P > -np.inf) & (left_P + slack_P >= best.score_PK[:, -1]))
    if len(open_U):
        row_UN = _search_all(query.raw_BD[open_U], block.raw_BD, min(k + TIES, len(block)), cosine=cosine)
        best = merged(np.repeat(open_U, row_UN.shape[1]), row_UN.ravel())
    return best


def _search_all(query_UD: np.ndarray, block_BD: np.ndarray, count: int, *, cosine: bool) -> np.ndarray:
    """The `count` best rows [U,N] in float64, for the few queries with more ties than the engine was asked for."""
    exact_DB = block_BD.T.astype(np.float64)
    if cosine:
        exact_DB /= np.linalg.norm(exact_DB, axis=0)
    row_UN = np.empty((len(query_UD), count), dtype=np.int64)
    step = max(1, BLOCK_VALUES // len(block_BD) // 4)
    for start in range(0, len(query_UD), step):
        score_UB = query_UD[start : start + step].astype(np.float64) @ exact_DB
        # A product's last bits differ between equal rows: rounded, they tie, and a stable sort keeps their order.
        row_UN[start : start + step] = np.argsort(-score_UB.round(12), axis=1, kind="stable")[:, :count]
    return row_UN
