"""Exact top-k search and counts above a threshold, in one pass over a database that may exceed memory.

P probes, U some of them, G gallery rows, D feature, B rows of a block, S prefixes, K neighbours, M pairs, N candidates.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from facelt.search.engine import Engine, Scorer
from facelt.search.exact import (
    MAX_BLOCK_VALUES,
    Block,
    MatrixLike,
    TopK,
    check_dimensions,
    iterate_blocks,
    prepare_block,
    rounded_products,
    score_error_bound,
    similarities,
)
from facelt.search.factory import open_engine
from recordio_tools.progress import ProgressFn, no_progress

# Unit roundoff of a float64.
_ROUNDOFF = 2.0**-53


def top_k(
    query_PD: np.ndarray,
    database_GD: MatrixLike,
    k: int,
    prefixes: Sequence[int] | None = None,
    *,
    cosine: bool = False,
    engine: Engine | None = None,
    progress: ProgressFn = no_progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns exact scores by inner product or cosine, float64 [S,P,K] descending, and positions int64 [S,P,K].

    Entry s is the result for a gallery of the first `prefixes[s]` rows (default: all G rows). Equal scores are in order
    of position, and equal rows have equal scores with every engine. If a gallery has fewer than k rows, the remaining
    entries are -inf and -1. `progress` is called after each block. Memory: a few blocks of the database, a tile of
    their scores, and the results.

    Raises BadRow on a row that is not finite or, for cosines, is zero; UserError on unequal dimensions; ValueError on a
    prefix beyond G.
    """
    check_dimensions(query_PD, database_GD)
    total = database_GD.shape[0]
    sizes = [total] if prefixes is None else list(prefixes)
    if k < 1 or any(not 0 <= size <= total for size in sizes):
        raise ValueError(f"k = {k} must be positive and the prefixes {sizes} within the {total} rows")
    query = prepare_block(query_PD, "query", cosine=cosine)
    scorer = (engine or open_engine()).open(query.engine_row_BD)
    best = TopK.empty(len(query), k)
    by_size = {0: best}
    for block in iterate_blocks(database_GD, sizes, cosine=cosine):
        best = _with_block(best, scorer, query, block, cosine=cosine)
        done = block.start + len(block)
        if done in sizes:
            by_size[done] = best
        progress("searching", done, max(sizes))
    return np.stack([by_size[size].score_PK for size in sizes]), np.stack([by_size[size].id_PK for size in sizes])


def _with_block(best: TopK, scorer: Scorer, query: Block, block: Block, *, cosine: bool) -> TopK:
    """Merges a block into a running top-k, by exact scores of all candidate pairs."""

    def merge(query_M: np.ndarray, row_M: np.ndarray) -> TopK:
        score_M = similarities(query.row_BD, query_M, block.row_BD, row_M, cosine=cosine)
        return best.merge(query_M, score_M, row_M + block.start)

    k = best.score_PK.shape[1]
    error_P = score_error_bound(query, block, scorer.set_block(block.engine_row_BD), cosine=cosine)
    (query_M, row_M, _), omitted_P = scorer.topk(k, best.score_PK[:, -1] - error_P)
    best = merge(*_nearest_pairs(best, query, block, query_M, row_M, cosine=cosine))
    # A row omitted by the engine scores at most omitted_P plus the rounding error.
    (open_U,) = np.nonzero((omitted_P > -np.inf) & (omitted_P + error_P >= best.score_PK[:, -1]))
    if len(open_U):
        for query_M, row_M in _nearest_in_float64(query, block, open_U, k, cosine=cosine):
            best = merge(query_M, row_M)
    return best


def _nearest_pairs(
    best: TopK, query: Block, block: Block, query_M: np.ndarray, row_M: np.ndarray, *, cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs that can be among the k best by their float32 products, which cost less than exact scores."""
    probes, k = best.score_PK.shape
    product_M = rounded_products(query.engine_row_BD, query_M, block.engine_row_BD, row_M).astype(np.float64)
    error_P = score_error_bound(query, block, 0.0, cosine=cosine)
    # The k-th best of all blocks is no worse than that of the earlier ones, and no worse than that of this block.
    floor_P = best.score_PK[:, -1].copy()
    order_M = np.lexsort((-product_M, query_M))
    count_P = np.bincount(query_M, minlength=probes)
    (full_U,) = np.nonzero(count_P >= k)
    kth_U = order_M[(np.cumsum(count_P) - count_P)[full_U] + k - 1]
    floor_P[full_U] = np.maximum(floor_P[full_U], product_M[kth_U] - error_P[full_U])
    is_near_M = product_M + error_P[query_M] >= floor_P[query_M]
    return query_M[is_near_M], row_M[is_near_M]


def _nearest_in_float64(
    query: Block, block: Block, open_U: np.ndarray, k: int, *, cosine: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the pairs that can be among the k best by float64 products, for the few queries with ties at the k-th.

    A product and an exact score are sums in different orders, so all rows within their rounding of the k-th are
    returned; of equal rows, which have equal scores, the first k.
    """
    dimension = block.row_BD.shape[1]
    exact_DB = block.row_BD.T.astype(np.float64)
    if cosine:
        exact_DB /= np.linalg.norm(exact_DB, axis=0)
    kth = min(k, len(block))
    step = max(1, MAX_BLOCK_VALUES // len(block) // 4)
    for start in range(0, len(open_U), step):
        part_U = open_U[start : start + step]
        query_UD = query.row_BD[part_U].astype(np.float64)
        score_UB = query_UD @ exact_DB
        # The norms and the quotient of a cosine are rounded as well.
        error_U = 4 * (dimension + 8) * _ROUNDOFF * np.linalg.norm(query_UD, axis=1) * (1 if cosine else block.max_norm)
        floor_U = np.partition(score_UB, -kth, axis=1)[:, -kth] - 2 * error_U
        is_near_UB = score_UB >= floor_U[:, None]
        (near_N,) = np.nonzero(is_near_UB.any(axis=0))
        near_N = near_N[_is_among_first(block.row_BD[near_N], k)]
        index_M, near_M = np.nonzero(is_near_UB[:, near_N])
        yield part_U[index_M], near_N[near_M]


def _is_among_first(row_ND: np.ndarray, k: int) -> np.ndarray:
    """Returns which rows are among the first k that hold their bytes, bool [N]."""
    bytes_N = row_ND.view(np.dtype((np.void, row_ND.itemsize * row_ND.shape[1])))[:, 0]
    _, group_N = np.unique(bytes_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    is_first_N = np.empty(len(row_ND), dtype=bool)
    is_first_N[order_N] = np.arange(len(row_ND)) - np.searchsorted(group_N[order_N], group_N[order_N]) < k
    return is_first_N


def top_k_prevalidated(
    query_PD: np.ndarray,
    database_GD: np.ndarray,
    k: int,
    *,
    cosine: bool,
    engine: Engine,
    max_norm: float,
    max_norm_error: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `top_k` of the whole database, [P,K] each, for float32 rows that were validated when they were written.

    `top_k` reads every row once before the engine does, to validate it and to compute its norm; skipping that halves
    the time of a search for few queries. Rows must be finite and, for cosines, near unit norm; `max_norm` is their
    largest norm and `max_norm_error` the largest deviation from one. Engines other than faiss would copy the rows, so
    they get them block by block.
    """
    check_dimensions(query_PD, database_GD)
    if engine.name != "faiss" or not len(database_GD):
        score_SPK, id_SPK = top_k(query_PD, database_GD, k, cosine=cosine, engine=engine)
        return score_SPK[0], id_SPK[0]
    query = prepare_block(query_PD, "query", cosine=cosine)
    block = Block(0, database_GD, database_GD, max_norm, max_norm_error)
    scorer = engine.open(query.engine_row_BD)
    error_P = score_error_bound(query, block, scorer.set_block(database_GD), cosine=cosine)
    (query_M, row_M, _), omitted_P = scorer.topk(k, np.full(len(query), -np.inf))
    score_M = similarities(query.row_BD, query_M, database_GD, row_M, cosine=cosine)
    best = TopK.empty(len(query), k).merge(query_M, score_M, row_M)
    score_PK, id_PK = best.score_PK, best.id_PK
    # Queries with too many ties, of which the engine may have omitted one of the k best, are searched in blocks.
    (open_U,) = np.nonzero((omitted_P > -np.inf) & (omitted_P + error_P >= score_PK[:, -1]))
    if len(open_U):
        score_SUK, id_SUK = top_k(query.row_BD[open_U], database_GD, k, cosine=cosine, engine=engine)
        score_PK[open_U], id_PK[open_U] = score_SUK[0], id_SUK[0]
    return score_PK, id_PK


def count_above(
    query_PD: np.ndarray,
    database_GD: MatrixLike,
    threshold: float,
    *,
    engine: Engine | None = None,
    progress: ProgressFn = no_progress,
) -> np.ndarray:
    """Returns the number of rows with a cosine similarity strictly above `threshold`, int64 [P].

    Similarities within the engine's error of the threshold are recomputed in float64, so the counts are exact. Raises
    BadRow on a row that is not finite or is zero, UserError on unequal dimensions.
    """
    check_dimensions(query_PD, database_GD)
    total = database_GD.shape[0]
    query = prepare_block(query_PD, "query", cosine=True)
    scorer = (engine or open_engine()).open(query.engine_row_BD)
    count_P = np.zeros(len(query), dtype=np.int64)
    for block in iterate_blocks(database_GD, [total], cosine=True):
        error = float(
            score_error_bound(query, block, scorer.set_block(block.engine_row_BD), cosine=True).max(initial=0.0)
        )
        for query_M, row_M, score_M in scorer.range_search(threshold - error):
            close_M = np.abs(score_M - threshold) <= error + scorer.score_rounding * np.abs(score_M)
            exact_M = similarities(query.row_BD, query_M[close_M], block.row_BD, row_M[close_M], cosine=True)
            above_M = score_M > threshold
            above_M[close_M] = exact_M > threshold
            count_P += np.bincount(query_M[above_M], minlength=len(query))
        progress("counting similar rows", block.start + len(block), total)
    return count_P
