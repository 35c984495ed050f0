"""Rows whose float32 products are scores as they are, without a search engine to re-score them. G rows, D feature.

Every pair of two images of a set, in blocks of float32 scores. N images, B rows of a block, C columns, D feature.

Match errors of all pairs of a set at fixed thresholds, by the sets of images (units) of both sides.

A pair is mated when both images are of one identity; it matches when it scores at or above the threshold.

N images, U units, T thresholds, D feature, M pairs.

Scores of compared pairs in histograms, of everyone and within each group: for thresholds and DET curves.

N images, G groups, B bins, D feature, M pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.errors import UserError
from facelt.identification.error_rates import ScoreGrid, ScoreHistograms
from facelt.search.exact import MatrixLike, similarities, validated_squared_norms
from facelt.stats.groups import Grouping, UnitPairCounts, Units
from recordio_tools.progress import ProgressFn, no_progress

# float32 values of one block.
BLOCK_VALUES = 1 << 22


def scored_rows(rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> np.ndarray:
    """The rows as float32 [B,D], for cosines brought to length one; the very array where nothing is to be done.

    `side` and `start` are for the message of BadRow: raised on a row that is not finite or, for cosines, has length
    zero.
    """
    rows_BD = np.ascontiguousarray(rows_BD, dtype=np.float32)
    square_B = validated_squared_norms(rows_BD, side, start, cosine=cosine)
    return rows_BD / np.sqrt(square_B)[:, None] if cosine else rows_BD


def scored_blocks(rows_GD: MatrixLike, rows: int, *, cosine: bool) -> Iterator[np.ndarray]:
    """`scored_rows` of a database in blocks of at most `rows` rows."""
    total, dimension = rows_GD.shape
    rows = max(1, min(rows, BLOCK_VALUES // max(1, dimension)))
    for start in range(0, total, rows):
        yield scored_rows(rows_GD[start : start + rows], "database", start, cosine=cosine)


def longest(rows_BD: np.ndarray) -> float:
    """The greatest length of the rows, 0 without any."""
    return float(np.sqrt(np.einsum("bd,bd->b", rows_BD, rows_BD).max(initial=0.0)))


# Scores held at once.
SCORES = 1 << 22


def triangle(
    row_ND: np.ndarray, cuts: Sequence[int], left_out: float, progress: ProgressFn = no_progress
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks (start, score_BC) of rows start..start+B against the columns from `start` on, so that each pair is in one.

    No block goes across a cut. An image with itself and the second copy of a pair score `left_out`. A block is valid
    until the next; `progress` is called after each.
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
            progress("comparing pairs", stop, total)
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


# Counts by both units, 8 bytes each, for every threshold and for the trials.
MOST_CELLS = 1 << 26


@dataclass(frozen=True, eq=False)
class PairErrors:
    """At each of the T thresholds: false non-matches of mated and false matches of non-mated pairs, by unit."""

    threshold_T: np.ndarray
    mated: tuple[UnitPairCounts, ...]
    non_mated: tuple[UnitPairCounts, ...]


def pair_errors(
    embedding_ND: np.ndarray,
    units: Units,
    thresholds: Sequence[float],
    *,
    cosine: bool = False,
    progress: ProgressFn = no_progress,
) -> PairErrors:
    """Count the errors of all N (N - 1) / 2 pairs, by inner product or cosine; exact, as if all scores were float64.

    Two images of a fixed unit (see `Units`) are nobody's and make a non-mated pair. Memory: the embeddings twice as
    float32, 8 (T + 1) U^2 bytes, and a block of scores. `progress` is called as rows of the N x N triangle are done.

    Raises BadRow on a row that is not finite or, for cosines, has length zero; UserError on too many units; ValueError
    unless there are as many embeddings as images and all thresholds are finite.
    """
    threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if len(embedding_ND) != len(units.unit_N):
        raise ValueError(f"{len(embedding_ND)} embeddings for {len(units.unit_N)} images")
    if not np.isfinite(threshold_T).all():
        raise ValueError(f"the thresholds {threshold_T.tolist()} must be finite")
    if (len(threshold_T) + 1) * len(units) ** 2 > MOST_CELLS:
        raise UserError(
            f"{len(units):,} sets of images of one identity and one group are too many to compare with each other at "
            f"{len(threshold_T)} thresholds: group by fewer columns, or audit a sample of identities"
        )
    match_TUU = _matches(embedding_ND, units, threshold_T, cosine, progress)
    image_U = np.bincount(units.unit_N, minlength=len(units)).astype(np.int64)
    trial_UU = np.outer(image_U, image_U)
    np.fill_diagonal(trial_UU, image_U * (image_U - 1))
    return _split(match_TUU, trial_UU, units, threshold_T)


def _matches(embedding_ND, units: Units, threshold_T: np.ndarray, cosine: bool, progress: ProgressFn) -> np.ndarray:
    """Matching pairs by both units, symmetric int64 [T,U,U], those within a unit twice."""
    size = len(units)
    raw_ND = np.asarray(embedding_ND, dtype=np.float32)
    row_ND = scored_rows(raw_ND, "query", cosine=cosine)
    length = 1.0 if cosine else longest(row_ND)
    slack = rounding(raw_ND.shape[1], length)
    match_TUU = np.zeros((len(threshold_T), size, size), dtype=np.int64)
    for start, score_BC in triangle(row_ND, [], -np.inf, progress):
        for match_UU, threshold in zip(match_TUU, threshold_T, strict=True):
            row_M, column_M = pairs_at_or_above(score_BC, start, threshold, slack, raw_ND, cosine=cosine)
            # The units of this block's rows only: a table of all would be cleared for each block.
            unit_K, place_B = np.unique(units.unit_N[start : start + len(score_BC)], return_inverse=True)
            key_M = place_B[row_M - start] * size + units.unit_N[column_M]
            match_UU[unit_K] += np.bincount(key_M, minlength=len(unit_K) * size).reshape(len(unit_K), size)
    for match_UU in match_TUU:
        match_UU += match_UU.T
    return match_TUU


def _split(match_TUU: np.ndarray, trial_UU: np.ndarray, units: Units, threshold_T: np.ndarray) -> PairErrors:
    from scipy.sparse import coo_array

    # Units of one identity, as positions of the cells where they meet.
    order_U = np.argsort(units.identity_U, kind="stable")
    image_I = np.bincount(units.identity_U)
    first_I = np.cumsum(image_I) - image_I
    size_U = image_I[units.identity_U]
    left_M = np.repeat(np.arange(len(units)), size_U)
    within_M = np.arange(len(left_M)) - np.repeat(np.cumsum(size_U) - size_U, size_U)
    right_M = order_U[first_I[units.identity_U[left_M]] + within_M]
    own_M = ~(units.fixed_U[left_M] | units.fixed_U[right_M])
    same = left_M[own_M], right_M[own_M]

    def sparse(count_M: np.ndarray):
        return coo_array((count_M, same), shape=trial_UU.shape).tocsr()

    mated_trial_M = trial_UU[same]
    trial = sparse(mated_trial_M)
    mated = tuple(UnitPairCounts(sparse(mated_trial_M - match_UU[same]), trial, mated=True) for match_UU in match_TUU)
    for table_UU in (trial_UU, *match_TUU):
        table_UU[same] = 0
    return PairErrors(
        threshold_T, mated, tuple(UnitPairCounts(match_UU, trial_UU, mated=False) for match_UU in match_TUU)
    )


# Bins between 0 and the largest score: two histograms of 1 MB for each group.
STEPS = 1 << 16


class PairHistograms:
    """Counts of mated and of non-mated pairs by score: of all pairs, and of those with both images in one group."""

    def __init__(self, units: Units, grouping: Grouping, grid: ScoreGrid) -> None:
        self.units, self.grouping, self.grid = units, grouping, grid
        # The last row is of pairs of two groups. Non-mated first, then mated.
        self._count_2GB = np.zeros((2, len(grouping) + 1, grid.bins), dtype=np.int64)

    @property
    def everyone(self) -> ScoreHistograms:
        """All pairs, whatever the groups."""
        non_mated_B, mated_B = self._count_2GB.sum(axis=1)
        return ScoreHistograms(self.grid, mated_B, non_mated_B)

    def within(self, group: int) -> ScoreHistograms:
        """The pairs of two images of one group, by its position in the grouping."""
        non_mated_B, mated_B = self._count_2GB[:, group]
        return ScoreHistograms(self.grid, mated_B, non_mated_B)

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Count a block of pairs, each once, given as positions among the units' N images.

        Raises ValueError on scores that are not finite or beyond the grid, or lengths that differ.
        """
        score_M, mated_M = np.asarray(score_M, dtype=np.float64), np.asarray(mated_M, dtype=bool)
        if not len(score_M) == len(mated_M) == len(left_M) == len(right_M):
            raise ValueError(f"{len(score_M)} scores, {len(mated_M)} labels, {len(left_M)} and {len(right_M)} images")
        if not (np.abs(score_M) <= self.grid.scale).all():
            raise ValueError(f"a score is not finite or beyond {self.grid.scale:g}, where the grid ends")
        group_N = self.grouping.group_U[self.units.unit_N]
        group_M = np.where(group_N[left_M] == group_N[right_M], group_N[left_M], len(self.grouping))
        for mated in (False, True):
            for group in np.unique(group_M[mated_M == mated]):
                self._add(score_M[(mated_M == mated) & (group_M == group)], mated, group)

    def add_block(self, score_BC: np.ndarray, mated_BC: np.ndarray, group: int) -> None:
        """Count a matrix of float32 scores, those outside the grid left out, for one group (G: pairs of two groups)."""
        mated_B = self.grid.count(score_BC[mated_BC][None])
        self._count_2GB[1, group] += mated_B
        self._count_2GB[0, group] += self.grid.count(score_BC) - mated_B

    def _add(self, score_M: np.ndarray, mated: bool, group: int) -> None:
        self._count_2GB[int(mated), group] += self.grid.count(score_M)


def pair_histograms(
    embedding_ND: np.ndarray,
    units: Units,
    grouping: Grouping,
    *,
    cosine: bool = False,
    progress: ProgressFn = no_progress,
) -> PairHistograms:
    """The histograms of all N (N - 1) / 2 pairs by inner product or cosine, float32 products rounded to the grid.

    The grid is 2^-16 of the largest score there can be (1 for cosines). Two images of a fixed unit are nobody's and
    make a non-mated pair. Raises as `pair_errors` does.
    """
    if len(embedding_ND) != len(units.unit_N):
        raise ValueError(f"{len(embedding_ND)} embeddings for {len(units.unit_N)} images")
    row_ND = scored_rows(embedding_ND, "query", cosine=cosine)
    grid = ScoreGrid.reaching(1.0 if cosine else longest(row_ND) ** 2, STEPS)
    histograms = PairHistograms(units, grouping, grid)
    # Sorted by group, the columns of a block that are in its rows' group come first.
    group_N = grouping.group_U[units.unit_N]
    order_N = np.argsort(group_N, kind="stable")
    person_N = _persons(units)[order_N]
    ends_G = np.cumsum(np.bincount(group_N, minlength=len(grouping)))
    for start, score_BC in triangle(row_ND[order_N], ends_G, grid.left_out, progress):
        group = int(np.searchsorted(ends_G, start, side="right"))
        mated_BC = person_N[start : start + len(score_BC), None] == person_N[start:]
        own = ends_G[group] - start
        histograms.add_block(score_BC[:, :own], mated_BC[:, :own], group)
        histograms.add_block(score_BC[:, own:], mated_BC[:, own:], len(grouping))
    return histograms


def _persons(units: Units) -> np.ndarray:
    """A number for each image that only images of the same person share, int32 [N]."""
    person_N = units.identity_U[units.unit_N].astype(np.int32)
    nobody = np.flatnonzero(units.fixed_U[units.unit_N])
    person_N[nobody] = -1 - np.arange(len(nobody))
    return person_N
