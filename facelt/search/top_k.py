"""The k best database rows of every query row, for nested galleries, in one pass.

P probes, G gallery rows, B rows of a block, S prefixes, K neighbours, N candidates of a block, D feature.
"""

from collections.abc import Callable, Sequence

import numpy as np

from facelt.search.blocks import BLOCK_VALUES, Block, Rows, block_rows, check_dimensions, prepare, stream
from facelt.search.engine import Engine, FaissEngine
from facelt.search.exact import cosine_bound, error_bound, similarities

# Fetched beyond k, so that the engine's rounding cannot push one of the k best out of sight.
SPARE = 12


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
    come in the order of position, and equal rows score equally. Where a gallery has fewer than k rows the rest is
    -inf and -1. `advance(rows)` is called after each block. Never more than a block of the database and P x K results
    are in memory.

    Raises BadRow on a row that is not finite or, for cosines, has length zero; UserError on unequal dimensions;
    ValueError on a prefix beyond G.
    """
    check_dimensions(query_PD, database_GD)
    total, dimension = database_GD.shape
    sizes = [total] if prefixes is None else list(prefixes)
    if k < 1 or any(not 0 <= size <= total for size in sizes):
        raise ValueError(f"k = {k} must be positive and the prefixes {sizes} within the {total} rows")
    query = prepare(query_PD, "query", cosine=cosine)
    engine = engine or FaissEngine()
    score_PK = np.full((len(query), k), -np.inf)
    id_PK = np.full((len(query), k), -1, dtype=np.int64)
    found = {0: (score_PK, id_PK)}
    for block in stream(database_GD, sizes, cosine=cosine, rows=block_rows(dimension)):
        score_PN, row_PN = _best_of_block(engine, query, block, score_PK, cosine=cosine)
        id_PN = np.where(np.isneginf(score_PN), -1, row_PN + block.start)
        score_PK, id_PK = _merge(score_PK, id_PK, score_PN, id_PN)
        found[block.start + len(block)] = (score_PK, id_PK)
        found = {stop: result for stop, result in found.items() if stop in sizes}
        if advance:
            advance(len(block))
    return np.stack([found[size][0] for size in sizes]), np.stack([found[size][1] for size in sizes])


def _merge(
    score_PK: np.ndarray, id_PK: np.ndarray, score_PN: np.ndarray, id_PN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The K best of both, by descending score, then by position."""
    score_PC, id_PC = np.hstack([score_PK, score_PN]), np.hstack([id_PK, id_PN])
    order_PK = np.lexsort((id_PC, -score_PC), axis=1)[:, : score_PK.shape[1]]
    return np.take_along_axis(score_PC, order_PK, axis=1), np.take_along_axis(id_PC, order_PK, axis=1)


def _best_of_block(
    engine: Engine, query: Block, block: Block, best_PK: np.ndarray, *, cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores [P,N] and block rows [P,N] of all that can be among the k best; -inf where it cannot."""
    k = best_PK.shape[1]
    rough_PN, row_PN = engine.nearest(query.rough_BD, block.rough_BD, min(k + SPARE, len(block)))
    slack_P = _slack(query, block, cosine=cosine)
    floor_P = best_PK[:, -1] - slack_P
    if rough_PN.shape[1] > k:
        floor_P = np.maximum(floor_P, rough_PN[:, k - 1] - 2 * slack_P)
    probe_M, column_M = np.nonzero(rough_PN >= floor_P[:, None])
    row_M = row_PN[probe_M, column_M]
    score_PN = np.full(rough_PN.shape, -np.inf)
    score_PN[probe_M, column_M] = similarities(query.raw_BD, probe_M, block.raw_BD, row_M, cosine=cosine)
    if row_PN.shape[1] < len(block):
        # What was not fetched scores at most the last fetched score plus the rounding.
        kth_P = np.partition(np.hstack([best_PK, score_PN]), -k, axis=1)[:, -k]
        (open_U,) = np.nonzero(kth_P <= rough_PN[:, -1] + slack_P)
        if len(open_U):
            row_UN = _search_all(query.raw_BD[open_U], block.raw_BD, row_PN.shape[1], cosine=cosine)
            probe_M = np.repeat(open_U, row_UN.shape[1])
            score_M = similarities(query.raw_BD, probe_M, block.raw_BD, row_UN.ravel(), cosine=cosine)
            score_PN[open_U], row_PN[open_U] = score_M.reshape(row_UN.shape), row_UN
    return score_PN, row_PN


def _slack(query: Block, block: Block, *, cosine: bool) -> np.ndarray:
    """How far the engine's scores can be from the exact ones, for each query row [P]."""
    dimension = query.raw_BD.shape[1]
    if cosine:
        return np.full(len(query), cosine_bound(dimension))
    return error_bound(dimension) * np.linalg.norm(query.raw_BD, axis=1) * np.linalg.norm(block.raw_BD, axis=1).max()


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
