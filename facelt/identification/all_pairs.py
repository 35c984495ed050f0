"""Scores of all pairs of a set: match errors at fixed thresholds, and score histograms by group.

A pair is mated if both images are of one identity; it matches if its score is at or above the threshold.

N images, U units (sets of images of one identity and group), G groups or database rows, T thresholds, D feature,
B rows of a block or bins of a histogram, C columns, M pairs.
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
_BLOCK_VALUES = 1 << 22


def normalized_rows(rows_BD: np.ndarray, side: str, start: int = 0, *, cosine: bool) -> np.ndarray:
    """Returns the rows as float32 [B,D], normalised for cosines; no copy if nothing changes.

    `side` and `start` are for the message of BadRow, raised on a row that is not finite or, for cosines, is zero.
    """
    rows_BD = np.ascontiguousarray(rows_BD, dtype=np.float32)
    square_B = validated_squared_norms(rows_BD, side, start, cosine=cosine)
    return rows_BD / np.sqrt(square_B)[:, None] if cosine else rows_BD


def iterate_normalized_blocks(rows_GD: MatrixLike, rows: int, *, cosine: bool) -> Iterator[np.ndarray]:
    """Yields `normalized_rows` of a database in blocks of at most `rows` rows."""
    total, dimension = rows_GD.shape
    rows = max(1, min(rows, _BLOCK_VALUES // max(1, dimension)))
    for start in range(0, total, rows):
        yield normalized_rows(rows_GD[start : start + rows], "database", start, cosine=cosine)


def max_norm(rows_BD: np.ndarray) -> float:
    """Returns the largest norm of the rows, 0 for no rows."""
    return float(np.sqrt(np.einsum("bd,bd->b", rows_BD, rows_BD).max(initial=0.0)))


# Scores of one block of the triangle.
MAX_TRIANGLE_SCORES = 1 << 22


def iterate_upper_triangle(
    row_ND: np.ndarray, cuts: Sequence[int], ignored_score: float, progress: ProgressFn = no_progress
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields blocks (start, score_BC) of rows start..start+B against columns start..N, so each pair occurs once.

    No block crosses a cut. The diagonal and the second copy of a pair are set to `ignored_score`. A block is valid
    until the next one is requested; `progress` is called after each.
    """
    total = len(row_ND)
    rows = max(1, MAX_TRIANGLE_SCORES // max(1, total))
    values = np.empty(rows * total, dtype=np.float32)
    ends = sorted({*cuts, total} - {0})
    start = 0
    for end in ends:
        while start < end:
            stop = min(start + rows, end)
            shape = stop - start, total - start
            score_BC = np.matmul(row_ND[start:stop], row_ND[start:].T, out=values[: shape[0] * shape[1]].reshape(shape))
            score_BC[np.tril_indices(stop - start)] = ignored_score
            yield start, score_BC
            progress("comparing pairs", stop, total)
            start = stop


def matching_pairs(
    score_BC: np.ndarray, start: int, threshold: float, error: float, embedding_ND: np.ndarray, *, cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns, [M] each as positions among the N images, of the pairs of a block that match.

    Scores within the rounding error `error` of the threshold are recomputed in float64.
    """
    # threshold - error may be rounded up to float32; the next smaller value is a safe floor.
    floor = np.nextafter(np.float32(threshold - error), np.float32(-np.inf))
    flat_M = np.flatnonzero(score_BC >= floor)
    row_M, column_M = np.divmod(flat_M, max(1, score_BC.shape[1]))
    row_M, column_M = row_M + start, column_M + start
    close_K = np.flatnonzero(score_BC.ravel()[flat_M] <= threshold + error)
    exact_K = similarities(embedding_ND, row_M[close_K], embedding_ND, column_M[close_K], cosine=cosine)
    is_match_M = np.ones(len(flat_M), dtype=bool)
    is_match_M[close_K] = exact_K >= threshold
    return row_M[is_match_M], column_M[is_match_M]


def product_error_bound(dimension: int, norm: float) -> float:
    """Returns the error bound of a float32 product of two rows with norms of at most `norm`.

    Twice the bound n u / (1 - n u) of a sum of n products (Higham, Accuracy and Stability of Numerical Algorithms,
    3.1), with a few more roundings for the normalisation of the rows.
    """
    product = (dimension + 8) * 2.0**-24
    return 2 * product / (1 - product) * norm**2


# Cells of the count tables [T+1,U,U], 8 bytes each.
MAX_COUNT_CELLS = 1 << 26


@dataclass(frozen=True, eq=False)
class PairErrors:
    """False non-matches of mated pairs and false matches of non-mated pairs by unit, at each of T thresholds."""

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
    """Returns the errors of all N (N - 1) / 2 pairs by inner product or cosine, exact as with float64 scores.

    Two images of a fixed unit (see `Units`) have no identity and form a non-mated pair. Memory: the embeddings twice as
    float32, 8 (T + 1) U^2 bytes, and a block of scores. `progress` counts rows of the N x N triangle.

    Raises BadRow on a row that is not finite or, for cosines, is zero; UserError on too many units; ValueError unless
    there is one embedding per image and all thresholds are finite.
    """
    threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if len(embedding_ND) != len(units.unit_N):
        raise ValueError(f"{len(embedding_ND)} embeddings for {len(units.unit_N)} images")
    if not np.isfinite(threshold_T).all():
        raise ValueError(f"the thresholds {threshold_T.tolist()} must be finite")
    if (len(threshold_T) + 1) * len(units) ** 2 > MAX_COUNT_CELLS:
        raise UserError(
            f"{len(units):,} sets of images of one identity and group are too many to compare at {len(threshold_T)} "
            "thresholds; group by fewer columns, or audit a sample of identities"
        )
    match_TUU = _matches(embedding_ND, units, threshold_T, cosine, progress)
    image_U = np.bincount(units.unit_N, minlength=len(units)).astype(np.int64)
    trial_UU = np.outer(image_U, image_U)
    np.fill_diagonal(trial_UU, image_U * (image_U - 1))
    return _split(match_TUU, trial_UU, units, threshold_T)


def _matches(embedding_ND, units: Units, threshold_T: np.ndarray, cosine: bool, progress: ProgressFn) -> np.ndarray:
    """Counts matching pairs by both units, symmetric int64 [T,U,U]; pairs within a unit count twice."""
    size = len(units)
    embedding_ND = np.asarray(embedding_ND, dtype=np.float32)
    row_ND = normalized_rows(embedding_ND, "query", cosine=cosine)
    error = product_error_bound(embedding_ND.shape[1], 1.0 if cosine else max_norm(row_ND))
    match_TUU = np.zeros((len(threshold_T), size, size), dtype=np.int64)
    for start, score_BC in iterate_upper_triangle(row_ND, [], -np.inf, progress):
        for match_UU, threshold in zip(match_TUU, threshold_T, strict=True):
            row_M, column_M = matching_pairs(score_BC, start, threshold, error, embedding_ND, cosine=cosine)
            # Only the units of this block's rows: a table of all units would be cleared for each block.
            unit_K, index_B = np.unique(units.unit_N[start : start + len(score_BC)], return_inverse=True)
            key_M = index_B[row_M - start] * size + units.unit_N[column_M]
            match_UU[unit_K] += np.bincount(key_M, minlength=len(unit_K) * size).reshape(len(unit_K), size)
    for match_UU in match_TUU:
        match_UU += match_UU.T
    return match_TUU


def _split(match_TUU: np.ndarray, trial_UU: np.ndarray, units: Units, threshold_T: np.ndarray) -> PairErrors:
    from scipy.sparse import coo_array

    # Cells of the table whose two units are of one identity.
    order_U = np.argsort(units.identity_U, kind="stable")
    image_I = np.bincount(units.identity_U)
    first_I = np.cumsum(image_I) - image_I
    size_U = image_I[units.identity_U]
    left_M = np.repeat(np.arange(len(units)), size_U)
    within_M = np.arange(len(left_M)) - np.repeat(np.cumsum(size_U) - size_U, size_U)
    right_M = order_U[first_I[units.identity_U[left_M]] + within_M]
    is_mated_M = ~(units.fixed_U[left_M] | units.fixed_U[right_M])
    mated_cells = left_M[is_mated_M], right_M[is_mated_M]

    def sparse(count_M: np.ndarray):
        return coo_array((count_M, mated_cells), shape=trial_UU.shape).tocsr()

    mated_trial_M = trial_UU[mated_cells]
    trial = sparse(mated_trial_M)
    mated = tuple(
        UnitPairCounts(sparse(mated_trial_M - match_UU[mated_cells]), trial, mated=True) for match_UU in match_TUU
    )
    for table_UU in (trial_UU, *match_TUU):
        table_UU[mated_cells] = 0
    return PairErrors(
        threshold_T, mated, tuple(UnitPairCounts(match_UU, trial_UU, mated=False) for match_UU in match_TUU)
    )


# Grid steps between 0 and the largest score: two histograms of 1 MB per group.
_GRID_STEPS = 1 << 16


class PairHistograms:
    """Score histograms of mated and non-mated pairs: of all pairs, and of pairs within each group."""

    def __init__(self, units: Units, grouping: Grouping, grid: ScoreGrid) -> None:
        self.units, self.grouping, self.grid = units, grouping, grid
        # [non-mated, mated]; the last group index is for pairs across groups.
        self._count_2GB = np.zeros((2, len(grouping) + 1, grid.bins), dtype=np.int64)

    @property
    def overall(self) -> ScoreHistograms:
        """Histograms of all pairs."""
        non_mated_B, mated_B = self._count_2GB.sum(axis=1)
        return ScoreHistograms(self.grid, mated_B, non_mated_B)

    def within(self, group: int) -> ScoreHistograms:
        """Returns the histograms of pairs within one group, given by its index in the grouping."""
        non_mated_B, mated_B = self._count_2GB[:, group]
        return ScoreHistograms(self.grid, mated_B, non_mated_B)

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Counts a block of distinct pairs, given as positions among the N images of the units.

        Raises ValueError on scores that are not finite or beyond the grid, or on different lengths.
        """
        score_M, mated_M = np.asarray(score_M, dtype=np.float64), np.asarray(mated_M, dtype=bool)
        if not len(score_M) == len(mated_M) == len(left_M) == len(right_M):
            raise ValueError(f"{len(score_M)} scores, {len(mated_M)} labels, {len(left_M)} and {len(right_M)} images")
        if not (np.abs(score_M) <= self.grid.scale).all():
            raise ValueError(f"a score is not finite or beyond the grid, which ends at {self.grid.scale:g}")
        group_N = self.grouping.group_U[self.units.unit_N]
        group_M = np.where(group_N[left_M] == group_N[right_M], group_N[left_M], len(self.grouping))
        for mated in (False, True):
            for group in np.unique(group_M[mated_M == mated]):
                score_K = score_M[(mated_M == mated) & (group_M == group)]
                self._count_2GB[int(mated), group] += self.grid.count(score_K)

    def add_block(self, score_BC: np.ndarray, mated_BC: np.ndarray, group: int) -> None:
        """Counts a matrix of float32 scores for one group (index G: pairs across groups)."""
        mated_B = self.grid.count(score_BC[mated_BC][None])
        self._count_2GB[1, group] += mated_B
        self._count_2GB[0, group] += self.grid.count(score_BC) - mated_B


def pair_histograms(
    embedding_ND: np.ndarray,
    units: Units,
    grouping: Grouping,
    *,
    cosine: bool = False,
    progress: ProgressFn = no_progress,
) -> PairHistograms:
    """Returns the histograms of all N (N - 1) / 2 pairs by inner product or cosine, float32 products rounded to a grid.

    The grid step is 2^-16 of the largest possible score (1 for cosines). Two images of a fixed unit have no identity
    and form a non-mated pair. Raises as `pair_errors` does.
    """
    if len(embedding_ND) != len(units.unit_N):
        raise ValueError(f"{len(embedding_ND)} embeddings for {len(units.unit_N)} images")
    row_ND = normalized_rows(embedding_ND, "query", cosine=cosine)
    grid = ScoreGrid.for_bound(1.0 if cosine else max_norm(row_ND) ** 2, _GRID_STEPS)
    histograms = PairHistograms(units, grouping, grid)
    # Sorted by group: the columns of the same group as the rows of a block come first.
    group_N = grouping.group_U[units.unit_N]
    order_N = np.argsort(group_N, kind="stable")
    identity_N = _image_identities(units)[order_N]
    ends_G = np.cumsum(np.bincount(group_N, minlength=len(grouping)))
    for start, score_BC in iterate_upper_triangle(row_ND[order_N], ends_G, grid.ignored_score, progress):
        group = int(np.searchsorted(ends_G, start, side="right"))
        mated_BC = identity_N[start : start + len(score_BC), None] == identity_N[start:]
        width = ends_G[group] - start
        histograms.add_block(score_BC[:, :width], mated_BC[:, :width], group)
        histograms.add_block(score_BC[:, width:], mated_BC[:, width:], len(grouping))
    return histograms


def _image_identities(units: Units) -> np.ndarray:
    """Returns the identity of each image, int32 [N]; images of fixed units get distinct negative numbers."""
    identity_N = units.identity_U[units.unit_N].astype(np.int32)
    unknown = np.flatnonzero(units.fixed_U[units.unit_N])
    identity_N[unknown] = -1 - np.arange(len(unknown))
    return identity_N
