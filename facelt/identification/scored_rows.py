"""Rows whose float32 products are scores as they are, without a search engine to re-score them. G rows, D feature."""

from collections.abc import Iterator

import numpy as np

from facelt.search import Rows
from facelt.search.blocks import checked_squares

# float32 values of one block.
BLOCK_VALUES = 1 << 22


def scored_rows(rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> np.ndarray:
    """The rows as float32 [B,D], for cosines brought to length one; the very array where nothing is to be done.

    `side` and `start` are for the message of BadRow: raised on a row that is not finite or, for cosines, has length
    zero.
    """
    rows_BD = np.ascontiguousarray(rows_BD, dtype=np.float32)
    square_B = checked_squares(rows_BD, side, start, cosine=cosine)
    return rows_BD / np.sqrt(square_B)[:, None] if cosine else rows_BD


def scored_blocks(rows_GD: Rows, rows: int, *, cosine: bool) -> Iterator[np.ndarray]:
    """`scored_rows` of a database in blocks of at most `rows` rows."""
    total, dimension = rows_GD.shape
    rows = max(1, min(rows, BLOCK_VALUES // max(1, dimension)))
    for start in range(0, total, rows):
        yield scored_rows(rows_GD[start : start + rows], "database", start, cosine=cosine)


def longest(rows_BD: np.ndarray) -> float:
    """The greatest length of the rows, 0 without any."""
    return float(np.sqrt(np.einsum("bd,bd->b", rows_BD, rows_BD).max(initial=0.0)))
