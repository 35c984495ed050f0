"""Exact similarity scores, blocks of database rows, and a running top-k.

A matrix product sums in an order that depends on the position of a row, so equal rows can differ in the last bit of
their scores. Here every score is one float64 sum in a fixed order: equal rows have equal scores at any position and on
either side.

P probes, U some of them, G gallery rows, B rows of one block, N rows or entries, M pairs, D feature, K neighbours.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from facelt.errors import UserError

# Fits into the cache of one core.
CHUNK_VALUES = 1 << 16
# Threads that score pairs, if there are more chunks of them than spans; each span is scored by one thread.
_THREADS, _SPANS = 4, 8


def similarities(
    left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """Returns the inner product or cosine of left_ND[left_M[i]] and right_ND[right_M[i]] for every i, float64 [M].

    Cosines divide by the float64 norms: a unit vector stored as float16 is up to 1e-3 off unit length. Uses a few MB of
    memory for any M. Rows must be finite and, for cosines, non-zero.
    """
    score_M = _inner_products(left_ND, left_M, right_ND, right_M)
    if cosine:
        score_M /= np.sqrt(_squares(left_ND, left_M) * _squares(right_ND, right_M))
    return score_M


def _inner_products(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    score_M = np.empty(len(left_M), dtype=np.float64)

    def fill(part: slice) -> None:
        product_BD = left_ND[left_M[part]].astype(np.float64)
        product_BD *= right_ND[right_M[part]]
        score_M[part] = product_BD.sum(axis=1)

    _fill_in_chunks(fill, len(left_M), left_ND.shape[1])
    return score_M


def _fill_in_chunks(fill: Callable[[slice], None], pairs: int, dimension: int) -> None:
    """Calls `fill` for chunks of pairs that fit into a cache, in a few threads if there are many."""
    step = max(1, CHUNK_VALUES // max(1, dimension))
    span = step * max(1, -(-pairs // (step * _SPANS)))

    def fill_span(first: int) -> None:
        last = min(first + span, pairs)
        for start in range(first, last, step):
            fill(slice(start, min(start + step, last)))

    if pairs <= step * _SPANS:
        for first in range(0, pairs, span):
            fill_span(first)
        return
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        # Consumed, so that errors are raised.
        list(threads.map(fill_span, range(0, pairs, span)))


def _squares(rows_ND: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    unique_U, index_M = np.unique(row_M, return_inverse=True)
    return _inner_products(rows_ND, unique_U, rows_ND, unique_U)[index_M]


def inner_product_error_bound(dimension: int) -> float:
    """Returns the error bound of a float32 inner product of two unit vectors, for any order of summation.

    n * u / (1 - n * u) with unit roundoff u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    product = (dimension + 1) * 2.0**-24
    return product / (1.0 - product)


def cosine_error_bound(dimension: int) -> float:
    """Returns the error bound of a cosine of rows normalised in float32: norms and quotients are rounded as well."""
    return 2 * inner_product_error_bound(dimension + 4)


def rounded_products(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    """Returns the float32 inner product [M] of left_ND[left_M[i]] and right_ND[right_M[i]], of float32 rows.

    Their error is that of `score_error_bound` without an engine's.
    """
    product_M = np.empty(len(left_M), dtype=np.float32)

    def fill(part: slice) -> None:
        np.einsum("md,md->m", left_ND[left_M[part]], right_ND[right_M[part]], out=product_M[part])

    _fill_in_chunks(fill, len(left_M), left_ND.shape[1])
    return product_M


# float32 values of one block; the memory of a search is a small multiple of this.
MAX_BLOCK_VALUES = 1 << 22
# Rows whose norms are this close to one (such as stored unit vectors) are not normalised: the error bound covers it.
MAX_UNNORMALISED_ERROR = 1e-3

# Sign, exponent and fraction of a float16, 13 places higher and with the sign repeated above the exponent.
_FLOAT16_BITS = np.int32(-0x7000_2000)


class MatrixLike(Protocol):
    """Matrix [N,D] whose slices are arrays: an array, a memory map, or files read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class BadRow(UserError):
    """Row without a valid score; `side` is "query" or "database", `row` its position in that matrix.

    Callers that know the file and image of the row catch it and name them.
    """

    def __init__(self, side: str, row: int, reason: str) -> None:
        super().__init__(f"row {row} of the {side} {reason}")
        self.side, self.row, self.reason = side, row, reason


@dataclass(frozen=True, eq=False)
class Block:
    """float32 rows: `row_BD` unchanged, for exact scores; `engine_row_BD` for an engine, near unit norm for cosines.

    `max_norm` is the largest norm of `row_BD`; `max_norm_error`, for cosines, the largest | |engine_row| - 1 |.
    """

    start: int
    row_BD: np.ndarray
    engine_row_BD: np.ndarray
    max_norm: float
    max_norm_error: float = 0.0

    def __len__(self) -> int:
        return len(self.row_BD)


def iterate_blocks(rows_GD: MatrixLike, cuts: Iterable[int], *, cosine: bool) -> Iterator[Block]:
    """Yields blocks up to the largest cut; no block crosses a cut, and each is valid until the next one is requested.

    The next block is read and validated in a thread while the caller works on the current one. Raises BadRow.
    """
    dimension = rows_GD.shape[1]
    rows = max(1, MAX_BLOCK_VALUES // max(1, dimension))
    spans = [
        (start, min(start + rows, stop))
        for first, stop in pairwise(sorted({0, *cuts}))
        for start in range(first, stop, rows)
    ]
    longest = max((stop - start for start, stop in spans), default=0)
    # Reused, since allocating fresh memory costs as much as filling it.
    buffers = [np.empty((longest, dimension), dtype=np.float32) for _ in range(2)]

    def read(index: int) -> Block:
        start, stop = spans[index]
        return prepare_block(
            rows_GD[start:stop], "database", start, cosine=cosine, out_BD=buffers[index % 2][: stop - start]
        )

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, 0) if spans else None
        for index in range(len(spans)):
            block = pending.result()
            if index + 1 < len(spans):
                pending = reader.submit(read, index + 1)
            yield block


def prepare_block(
    rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool, out_BD: np.ndarray | None = None
) -> Block:
    """Returns a validated block: a view if `rows_BD` is contiguous float32, else a copy (in `out_BD` if given).

    Raises BadRow on a row that is not finite or, for cosines, is zero.
    """
    if rows_BD.dtype == np.float32 and rows_BD.flags.c_contiguous:
        row_BD, square_B = rows_BD, _squared_norms(rows_BD)
    else:
        row_BD = np.empty(rows_BD.shape, dtype=np.float32) if out_BD is None else out_BD
        square_B = _convert(rows_BD, row_BD)
    norm_B = np.sqrt(_validated(square_B, side, start, cosine=cosine))
    max_norm = float(norm_B.max(initial=0.0))
    if not cosine:
        return Block(start, row_BD, row_BD, max_norm)
    max_norm_error = float(np.abs(norm_B - 1).max(initial=0.0))
    if max_norm_error <= MAX_UNNORMALISED_ERROR:
        return Block(start, row_BD, row_BD, max_norm, max_norm_error)
    return Block(start, row_BD, row_BD / norm_B[:, None], max_norm)


def validated_squared_norms(row_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> np.ndarray:
    """Returns the squared norms [B] of float32 rows.

    Raises BadRow on a row that is not finite or, for cosines, is zero.
    """
    return _validated(_squared_norms(row_BD), side, start, cosine=cosine)


def _squared_norms(row_BD: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.einsum("bd,bd->b", row_BD, row_BD)


def _convert(rows_BD: np.ndarray, out_BD: np.ndarray) -> np.ndarray:
    """Fills `out_BD` with the rows as float32, and returns their squared norms [B]."""
    square_B = np.empty(len(rows_BD), dtype=np.float32)
    # Rows that are converted and then read once more stay in the cache meanwhile.
    step = max(1, CHUNK_VALUES // max(1, rows_BD.shape[1]))
    for start in range(0, len(rows_BD), step):
        part = slice(start, start + step)
        square_B[part] = _convert_chunk(rows_BD[part], out_BD[part])
    return square_B


def _convert_chunk(rows_BD: np.ndarray, out_BD: np.ndarray) -> np.ndarray:
    if rows_BD.dtype == np.float16 and rows_BD.flags.c_contiguous:
        # The bits of a float16, 13 places higher, are those of the float32 value times 2^-112; numpy converts value by
        # value. Infinity and NaN become 2^16 or more, and so does the norm of the row.
        bits_BD = out_BD.view(np.int32)
        np.copyto(bits_BD, rows_BD.view(np.int16))
        bits_BD <<= 13
        bits_BD &= _FLOAT16_BITS
        out_BD *= np.float32(2.0**112)
        square_B = _squared_norms(out_BD)
        if square_B.max(initial=0.0) < 2.0**32:
            return square_B
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out_BD, rows_BD, casting="unsafe")
    return _squared_norms(out_BD)


def _validated(square_B: np.ndarray, side: str, start: int, *, cosine: bool) -> np.ndarray:
    if not (finite_B := np.isfinite(square_B)).all():
        raise BadRow(side, start + int(np.argmin(finite_B)), "holds a value that is not finite")
    if cosine and not square_B.all():
        raise BadRow(side, start + int(np.argmin(square_B)), "has length zero")
    return square_B


def score_error_bound(query: Block, block: Block, error: float, *, cosine: bool) -> np.ndarray:
    """Returns the largest difference between an engine's score and the exact one, per query row [P].

    `error` is the engine's error in excess of a float32 product's, relative to both norms.
    """
    dimension = query.row_BD.shape[1]
    if cosine:
        # Norms are near one: |q.g - cos| <= ||q||g| - 1|; the norms themselves are rounded sums.
        bound = 2 * cosine_error_bound(dimension) + error + query.max_norm_error + block.max_norm_error
        return np.full(len(query), 1.01 * bound)
    norm_P = np.linalg.norm(query.row_BD, axis=1)
    # Values below the smallest normal number may become zero.
    underflow_P = (norm_P + block.max_norm + 1) * (dimension + 1) * 2.0**-126
    return (inner_product_error_bound(dimension) + error) * norm_P * block.max_norm * 1.01 + underflow_P


def check_dimensions(query_PD: np.ndarray, database_GD: MatrixLike) -> None:
    """Raises UserError unless query and database are matrices of the same dimension."""
    if len(query_PD.shape) != 2 or len(database_GD.shape) != 2 or query_PD.shape[1] != database_GD.shape[1]:
        raise UserError(
            f"the query is {list(query_PD.shape)} and the database {list(database_GD.shape)}: "
            "they must come from one model and hold one dimension"
        )


@dataclass(frozen=True, eq=False)
class TopK:
    """Running top-k: scores float64 [P,K], descending, and positions int64 [P,K], ties in order of position.

    Unfilled entries at the end are -inf and -1.
    """

    score_PK: np.ndarray
    id_PK: np.ndarray

    @classmethod
    def empty(cls, probes: int, k: int) -> "TopK":
        """Returns an unfilled top-k."""
        return cls(np.full((probes, k), -np.inf), np.full((probes, k), -1, dtype=np.int64))

    def merge(self, probe_M: np.ndarray, score_M: np.ndarray, id_M: np.ndarray) -> "TopK":
        """Returns the K best of this top-k and the given pairs; a pair that occurs twice counts once."""
        probes, k = self.score_PK.shape
        is_touched_P = np.zeros(probes, dtype=bool)
        is_touched_P[probe_M] = True
        (touched_U,) = np.nonzero(is_touched_P)
        probe_N = np.concatenate([np.repeat(touched_U, k), probe_M])
        score_N = np.concatenate([self.score_PK[touched_U].ravel(), score_M])
        id_N = np.concatenate([self.id_PK[touched_U].ravel(), id_M])
        order_N = np.lexsort((id_N, -score_N, probe_N))
        probe_N, score_N, id_N = probe_N[order_N], score_N[order_N], id_N[order_N]
        first_N = np.ones(len(id_N), dtype=bool)
        # Duplicates have equal scores and are therefore adjacent; unfilled entries (-1) may repeat.
        first_N[1:] = (probe_N[1:] != probe_N[:-1]) | (id_N[1:] != id_N[:-1]) | (id_N[1:] < 0)
        probe_N, score_N, id_N = probe_N[first_N], score_N[first_N], id_N[first_N]
        entries_U = np.bincount(probe_N, minlength=probes)[touched_U]
        kept_UK = (np.cumsum(entries_U) - entries_U)[:, None] + np.arange(k)
        score_PK, id_PK = self.score_PK.copy(), self.id_PK.copy()
        score_PK[touched_U], id_PK[touched_U] = score_N[kept_UK], id_N[kept_UK]
        return TopK(score_PK, id_PK)
