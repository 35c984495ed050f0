"""Scores of compared pairs in histograms, of everyone and within each group: for thresholds and DET curves.

N images, G groups, B bins, D feature, M pairs.
"""

from collections.abc import Callable

import numpy as np

from facelt.identification.all_pairs import triangle
from facelt.identification.error_rates import ScoreHistograms
from facelt.identification.score_grid import ScoreGrid
from facelt.identification.scored_rows import longest, scored_rows
from facelt.metrics.groups import Grouping, Units

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
    advance: Callable[[int], None] | None = None,
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
    for start, score_BC in triangle(row_ND[order_N], ends_G, grid.left_out, advance):
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
