"""Stream the rows of an array that may be larger than memory. G gallery rows, B rows of one block, D feature."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from facelt.errors import UserError

# float32 values of one block; the anonymous memory of a search is a small multiple of this.
BLOCK_VALUES = 1 << 23
# What float16 storage can do to a unit vector's length, and a good margin.
UNIT_TOLERANCE = 0.01


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


def block_rows(dimension: int) -> int:
    """Rows of `dimension` values that make one block."""
    return max(1, BLOCK_VALUES // max(1, dimension))


def stream(rows_GD: Rows, cuts: Iterable[int], *, unit: bool, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, block_BD) up to the largest cut, at most `rows` rows each, none across a cut; float32, checked.

    Raises BadRow on a row that is not finite or, where `unit` asks for it, not of length one.
    """
    start = 0
    for cut in sorted(set(cuts)):
        while start < cut:
            stop = min(cut, start + rows)
            yield start, checked(rows_GD[start:stop], "database", start, unit=unit)
            start = stop


def checked(rows_BD: np.ndarray, side: str, start: int = 0, *, unit: bool = False) -> np.ndarray:
    """`rows_BD` as contiguous float32, without a copy where it is that already. Raises BadRow as `stream` does."""
    block_BD = np.ascontiguousarray(rows_BD, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        square_B = np.einsum("bd,bd->b", block_BD, block_BD)
    if not (finite_B := np.isfinite(square_B)).all():
        raise BadRow(side, start + int(np.argmin(finite_B)), "holds a value that is not finite")
    if unit and len(square_B):
        off_B = np.abs(np.sqrt(square_B) - 1.0)
        worst = int(np.argmax(off_B))
        if off_B[worst] > UNIT_TOLERANCE:
            raise BadRow(side, start + worst, f"has length {np.sqrt(square_B[worst]):.4g}, its kind has length one")
    return block_BD


def check_dimensions(query_PD: np.ndarray, database_GD: Rows) -> None:
    """Raise UserError unless both sides are matrices of one dimension."""
    if len(query_PD.shape) != 2 or len(database_GD.shape) != 2 or query_PD.shape[1] != database_GD.shape[1]:
        raise UserError(
            f"the query is {list(query_PD.shape)} and the database {list(database_GD.shape)}: "
            "they must come from one model and hold one dimension"
        )
