"""Stream the rows of an array that may be larger than memory. G gallery rows, B rows of one block, D feature."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facelt.errors import UserError

# float32 values of one block; the anonymous memory of a search is a small multiple of this.
BLOCK_VALUES = 1 << 23


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
    """Rows as float32: `raw_BD` as they are, for exact scores, `rough_BD` for an engine: of length one for cosines."""

    start: int
    raw_BD: np.ndarray
    rough_BD: np.ndarray

    def __len__(self) -> int:
        return len(self.raw_BD)


def block_rows(dimension: int) -> int:
    """Rows of `dimension` values that make one block."""
    return max(1, BLOCK_VALUES // max(1, dimension))


def stream(rows_GD: Rows, cuts: Iterable[int], *, cosine: bool, rows: int) -> Iterator[Block]:
    """Yield blocks up to the largest cut, at most `rows` rows each, none across a cut. Raises BadRow."""
    start = 0
    for cut in sorted(set(cuts)):
        while start < cut:
            stop = min(cut, start + rows)
            yield prepare(rows_GD[start:stop], "database", start, cosine=cosine)
            start = stop


def prepare(rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> Block:
    """A checked block, without a copy where `rows_BD` is float32 already and no cosine is asked for.

    Raises BadRow on a row that is not finite or, for cosines, has length zero.
    """
    raw_BD = np.ascontiguousarray(rows_BD, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        square_B = np.einsum("bd,bd->b", raw_BD, raw_BD)
    if not (finite_B := np.isfinite(square_B)).all():
        raise BadRow(side, start + int(np.argmin(finite_B)), "holds a value that is not finite")
    if not cosine:
        return Block(start, raw_BD, raw_BD)
    if not square_B.all():
        raise BadRow(side, start + int(np.argmin(square_B)), "has length zero")
    return Block(start, raw_BD, raw_BD / np.sqrt(square_B)[:, None])


def check_dimensions(query_PD: np.ndarray, database_GD: Rows) -> None:
    """Raise UserError unless both sides are matrices of one dimension."""
    if len(query_PD.shape) != 2 or len(database_GD.shape) != 2 or query_PD.shape[1] != database_GD.shape[1]:
        raise UserError(
            f"the query is {list(query_PD.shape)} and the database {list(database_GD.shape)}: "
            "they must come from one model and hold one dimension"
        )
