"""Every pair of two images of a set, in blocks of float32 scores. N images, B rows of a block, C columns, D feature."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from facelt.search import similarities

# Scores held at once.
SCORES = 1 << 22


def triangle(
    row_ND: np.ndarray, cuts: Sequence[int], left_out: float, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks (start, score_BC) of rows start..start+B against the columns from `start` on, so that each pair is in one.

    No block goes across a cut. An image with itself and the second copy of a pair score `left_out`. A block is valid
    until the next; `advance(rows)` is called after each.
    """
    total = len(row_ND)
    rows = max(1, SCORES // max(1, total))
    values = np.empty(rows * total, dtype=np.float32)
    ends = sorted({*cuts, total} - {0})
    start = 0
    for end in ends:
        while start < end:
            stop = min(start + rows, end)
            shape = stop - start, total - start
            score_BC = np.matmul(row_ND[start:stop], row_ND[start:].T, out=values[: shape[0] * shape[1]].reshape(shape))
            score_BC[np.tril_indices(stop - start)] = left_out
            yield start, score_BC
            if advance:
                advance(stop - start)
            start = stop


def pairs_at_or_above(
    score_BC: np.ndarray, start: int, threshold: float, slack: float, raw_ND: np.ndarray, *, cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, as positions among the N images, of the pairs of a block at or above the threshold: [M], [M].

    Scores that rounding, at most `slack`, may have carried across the threshold are computed again in float64.
    """
    # In float32 a threshold less the slack may round up; the next lower value cannot.
    floor = np.nextafter(np.float32(threshold - slack), np.float32(-np.inf))
    flat_M = np.flatnonzero(score_BC >= floor)
    row_M, column_M = np.divmod(flat_M, max(1, score_BC.shape[1]))
    row_M, column_M = row_M + start, column_M + start
    close_K = np.flatnonzero(score_BC.ravel()[flat_M] <= threshold + slack)
    exact_K = similarities(raw_ND, row_M[close_K], raw_ND, column_M[close_K], cosine=cosine)
    kept_M = np.ones(len(flat_M), dtype=bool)
    kept_M[close_K] = exact_K >= threshold
    return row_M[kept_M], column_M[kept_M]


def rounding(dimension: int, length: float) -> float:
    """How far a float32 product of rows at most `length` long, made so in float32 or not, can be from the exact one.

    Twice the bound n u / (1 - n u) of a sum of n products (Higham, Accuracy and Stability of Numerical Algorithms, 3.1)
    with a few more roundings for the division by the length.
    """
    product = (dimension + 8) * 2.0**-24
    return 2 * product / (1 - product) * length**2
