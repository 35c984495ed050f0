"""The k best database rows of every query row, for nested galleries, in one pass.

P probes, U some of them, G gallery rows, B rows of a block, S prefixes, K neighbours, M pairs, N rows found for one.

Exact search of a mapped matrix whose rows are known to be sound, as fast as the engine searches it.

`top_k` reads every row once before the engine does, to check it and to know its length. Where that was done when the
rows were written, this is half of the time of a search for few queries.

P probes, U some of them, G gallery rows, D feature, K neighbours.

How many database rows are more similar to a query row than a threshold.

P probes, G gallery rows, M pairs.
"""

from collections.abc import Sequence

import numpy as np

from facelt.search.engine import Engine, Scorer
from facelt.search.exact import (
    BLOCK_VALUES,
    Best,
    Block,
    Rows,
    check_dimensions,
    prepare,
    rounding,
    similarities,
    stream,
)
from facelt.search.factory import open_engine
from recordio_tools.progress import ProgressFn, no_progress

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
    progress: ProgressFn = no_progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search by inner product or cosine: scores float64 [S,P,K] descending and positions int64 [S,P,K].

    For each of `prefixes` (by default G alone) the result is that of a gallery of the first so many rows. Equal scores
    come in the order of position, and equal rows score equally, whatever the engine is. Where a
    gallery has fewer than k rows the rest is -inf and -1. `progress` is called after each block. Never more than
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
        progress("searching", done, max(sizes))
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


def top_k_sound(
    query_PD: np.ndarray,
    database_GD: np.ndarray,
    k: int,
    *,
    cosine: bool,
    engine: Engine,
    reach: float,
    stretch: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What `top_k` gives for the whole database, [P,K] each, of float32 rows that are finite and not zero.

    `reach` is the greatest length of a row, `stretch` how far lengths are from one at most; for cosines rows are of
    about length one. Engines other than faiss get the rows block by block, as they would copy them.
    """
    check_dimensions(query_PD, database_GD)
    if engine.name != "faiss" or not len(database_GD):
        score_SPK, id_SPK = top_k(query_PD, database_GD, k, cosine=cosine, engine=engine)
        return score_SPK[0], id_SPK[0]
    query = prepare(query_PD, "query", cosine=cosine)
    block = Block(0, database_GD, database_GD, reach, stretch)
    scorer = engine.open(query.rough_BD)
    slack_P = rounding(query, block, scorer.take(database_GD), cosine=cosine)
    (query_M, row_M, _), left_P = scorer.best(k, np.full(len(query), -np.inf))
    score_M = similarities(query.raw_BD, query_M, database_GD, row_M, cosine=cosine)
    best = Best.none(len(query), k).merged(query_M, score_M, row_M)
    score_PK, id_PK = best.score_PK, best.id_PK
    # So many ties that the engine may have left out one of the best: those are searched in blocks.
    (open_U,) = np.nonzero((left_P > -np.inf) & (left_P + slack_P >= score_PK[:, -1]))
    if len(open_U):
        score_SUK, id_SUK = top_k(query.raw_BD[open_U], database_GD, k, cosine=cosine, engine=engine)
        score_PK[open_U], id_PK[open_U] = score_SUK[0], id_SUK[0]
    return score_PK, id_PK


def count_above(
    query_PD: np.ndarray,
    database_GD: Rows,
    threshold: float,
    *,
    engine: Engine | None = None,
    progress: ProgressFn = no_progress,
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
        progress("counting similar rows", block.start + len(block), total)
    return count_P
