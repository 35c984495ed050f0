"""Similarities whose ties can be trusted. N rows, M pairs, D feature.

A matrix product adds in an order that depends on where a row lies, so two equal rows may score differently in the last
bit. Here each score is one float64 sum in one order: equal rows score equally, wherever they are and whichever side.

Stream the rows of an array that may be larger than memory. G gallery rows, B rows of one block, D feature.

The best rows found so far for every query row. P probes, U some of them, K neighbours, M pairs, N entries.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from facelt.errors import UserError

# Small enough for a core's cache.
CHUNK_VALUES = 1 << 16


def similarities(
    left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """The inner product or cosine of left_ND[left_M[i]] and right_ND[right_M[i]] for every i, float64 [M].

    The cosine is of the rows as float64: a unit vector stored as float16 has lost up to 1e-3 of its length. A few MB of
    memory whatever M is. Rows must be finite and, for cosines, not zero.
    """
    score_M = _inner_products(left_ND, left_M, right_ND, right_M)
    if cosine:
        score_M /= np.sqrt(_squares(left_ND, left_M) * _squares(right_ND, right_M))
    return score_M


def _inner_products(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    score_M = np.empty(len(left_M), dtype=np.float64)
    step = max(1, CHUNK_VALUES // max(1, left_ND.shape[1]))
    for start in range(0, len(left_M), step):
        part = slice(start, start + step)
        product_BD = left_ND[left_M[part]].astype(np.float64)
        product_BD *= right_ND[right_M[part]]
        score_M[part] = product_BD.sum(axis=1)
    return score_M


def _squares(rows_ND: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    used, place_M = np.unique(row_M, return_inverse=True)
    return _inner_products(rows_ND, used, rows_ND, used)[place_M]


def error_bound(dimension: int) -> float:
    """How far a float32 inner product of two unit vectors can be from the exact one, in any order of summation.

    n * u / (1 - n * u) with unit roundoff u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    product = (dimension + 1) * 2.0**-24
    return product / (1.0 - product)


def cosine_bound(dimension: int) -> float:
    """The same for the cosine of rows brought to length one in float32: their lengths and quotients round as well."""
    return 2 * error_bound(dimension + 4)


# float32 values of one block; the anonymous memory of a search is a small multiple of this.
BLOCK_VALUES = 1 << 22
# Rows whose lengths are this close to one (stored unit vectors are) need no division: the engine's slack covers it.
NEAR_ONE = 1e-3


class Rows(Protocol):
    """Anything with a shape [N,D] that a slice turns into an array: an array, a memory map, files read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class BadRow(UserError):
    """A row no score can be computed from; `side` is "query" or "database", `row` its position there.

    Whoever knows which file and image the row is catches it and says so.
    """

    def __init__(self, side: str, row: int, reason: str) -> None:
        super().__init__(f"row {row} of the {side} {reason}")
        self.side, self.row, self.reason = side, row, reason


@dataclass(frozen=True, eq=False)
class Block:
    """Rows as float32: `raw_BD` as they are, for exact scores; `rough_BD` for an engine, about unit length for cosines.

    `length` is the greatest length of raw rows, `stretch` how far lengths of rough rows are from one, for cosines.
    """

    start: int
    raw_BD: np.ndarray
    rough_BD: np.ndarray
    length: float
    stretch: float = 0.0

    def __len__(self) -> int:
        return len(self.raw_BD)


def block_rows(dimension: int) -> int:
    """Rows of `dimension` values that make one block."""
    return max(1, BLOCK_VALUES // max(1, dimension))


def stream(rows_GD: Rows, cuts: Iterable[int], *, cosine: bool, rows: int | None = None) -> Iterator[Block]:
    """Yield blocks up to the largest cut, none across a cut, each valid until the next is asked for. Raises BadRow.

    At most `rows` rows each, by default as many as make a block. The next block is read and checked in a thread while
    the caller works on this one.
    """
    dimension = rows_GD.shape[1]
    rows = rows or block_rows(dimension)
    spans = [
        (start, min(start + rows, stop))
        for first, stop in pairwise(sorted({0, *cuts}))
        for start in range(first, stop, rows)
    ]
    longest = max((stop - start for start, stop in spans), default=0)
    # Reused: fresh memory costs as much as filling it.
    spare = [np.empty((longest, dimension), dtype=np.float32) for _ in range(2)]

    def read(place: int) -> Block:
        start, stop = spans[place]
        return prepare(rows_GD[start:stop], "database", start, cosine=cosine, out_BD=spare[place % 2][: stop - start])

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, 0) if spans else None
        for place in range(len(spans)):
            block = ahead.result()
            if place + 1 < len(spans):
                ahead = reader.submit(read, place + 1)
            yield block


def prepare(rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool, out_BD: np.ndarray | None = None) -> Block:
    """A checked block, without a copy where `rows_BD` is float32 already, else in `out_BD` if that is given.

    Raises BadRow on a row that is not finite or, for cosines, has length zero.
    """
    if rows_BD.dtype == np.float32 and rows_BD.flags.c_contiguous:
        raw_BD = rows_BD
    else:
        raw_BD = np.empty(rows_BD.shape, dtype=np.float32) if out_BD is None else out_BD
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(raw_BD, rows_BD, casting="unsafe")
    length_B = np.sqrt(checked_squares(raw_BD, side, start, cosine=cosine))
    length = float(length_B.max(initial=0.0))
    if not cosine:
        return Block(start, raw_BD, raw_BD, length)
    stretch = float(np.abs(length_B - 1).max(initial=0.0))
    if stretch <= NEAR_ONE:
        return Block(start, raw_BD, raw_BD, length, stretch)
    return Block(start, raw_BD, raw_BD / length_B[:, None], length)


def checked_squares(row_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> np.ndarray:
    """The squared lengths of float32 rows, [B].

    Raises BadRow on a row that is not finite or, for cosines, has length zero.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        square_B = np.einsum("bd,bd->b", row_BD, row_BD)
    if not (finite_B := np.isfinite(square_B)).all():
        raise BadRow(side, start + int(np.argmin(finite_B)), "holds a value that is not finite")
    if cosine and not square_B.all():
        raise BadRow(side, start + int(np.argmin(square_B)), "has length zero")
    return square_B


def rounding(query: Block, block: Block, error: float, *, cosine: bool) -> np.ndarray:
    """How far an engine's scores of two rough rows can be from the exact ones of the raw rows, per query row [P].

    `error` is what the engine errs beyond a float32 product, as a share of both lengths.
    """
    dimension = query.raw_BD.shape[1]
    if cosine:
        # |q| and |g| within a stretch of one: |q.g - cos| <= ||q||g| - 1|; lengths themselves are rounded sums.
        bound = 2 * cosine_bound(dimension) + error + query.stretch + block.stretch
        return np.full(len(query), 1.01 * bound)
    return (error_bound(dimension) + error) * np.linalg.norm(query.raw_BD, axis=1) * block.length * 1.01


def check_dimensions(query_PD: np.ndarray, database_GD: Rows) -> None:
    """Raise UserError unless both sides are matrices of one dimension."""
    if len(query_PD.shape) != 2 or len(database_GD.shape) != 2 or query_PD.shape[1] != database_GD.shape[1]:
        raise UserError(
            f"the query is {list(query_PD.shape)} and the database {list(database_GD.shape)}: "
            "they must come from one model and hold one dimension"
        )


@dataclass(frozen=True, eq=False)
class Best:
    """Scores float64 [P,K] descending, ties by position, and positions int64 [P,K]; -inf and -1 at the end."""

    score_PK: np.ndarray
    id_PK: np.ndarray

    @classmethod
    def none(cls, probes: int, k: int) -> "Best":
        """Nothing found yet."""
        return cls(np.full((probes, k), -np.inf), np.full((probes, k), -1, dtype=np.int64))

    def merged(self, probe_M: np.ndarray, score_M: np.ndarray, id_M: np.ndarray) -> "Best":
        """The K best of these and the given pairs. A pair that is here already, or comes twice, counts once."""
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
        # Equal pairs have equal scores and so lie side by side; what stands for nothing found may repeat.
        first_N[1:] = (probe_N[1:] != probe_N[:-1]) | (id_N[1:] != id_N[:-1]) | (id_N[1:] < 0)
        probe_N, score_N, id_N = probe_N[first_N], score_N[first_N], id_N[first_N]
        entries_U = np.bincount(probe_N, minlength=probes)[touched_U]
        kept_UK = (np.cumsum(entries_U) - entries_U)[:, None] + np.arange(k)
        score_PK, id_PK = self.score_PK.copy(), self.id_PK.copy()
        score_PK[touched_U], id_PK[touched_U] = score_N[kept_UK], id_N[kept_UK]
        return Best(score_PK, id_PK)
