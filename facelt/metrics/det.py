"""Error trade-off by group: histograms of scores added up block by block, and the thresholds a group would need.

M pairs of a block, G groups, B bins, F pairs of groups.
"""

from dataclasses import dataclass

import numpy as np

from facelt.errors import UserError
from facelt.metrics.groups import Grouping, Units
from facelt.metrics.pair_counts import cells


@dataclass(frozen=True, eq=False)
class Det:
    """False match and false non-match rate at each of B thresholds, with the pairs behind them; NaN without pairs.

    At a threshold, pairs that score at least as much match. Between two thresholds the rates are those of neither.
    """

    threshold_B: np.ndarray
    fmr_B: np.ndarray
    fnmr_B: np.ndarray
    non_mated: int
    mated: int

    def threshold_at(self, fmr: float) -> int | None:
        """The position of the lowest threshold at which the FMR is at most that; None where no finite one does."""
        if not self.non_mated:
            return None
        first = int(np.argmax(self.fmr_B <= fmr))
        return first if np.isfinite(self.threshold_B[first]) else None


@dataclass(frozen=True)
class OwnThreshold:
    """What a threshold of a group's own, for the FMR that the one for all was set to, would do: analysis, not advice.

    None where a figure has no pairs. `expected_errors` is how many false matches the group's own threshold rests on:
    below 30 it is not measured within 30% (Doddington's rule; NIST, 1998).
    """

    group: tuple[str, ...]
    threshold: float | None
    fmr: float | None
    fnmr: float | None
    shared_fmr: float | None
    shared_fnmr: float | None
    expected_errors: float


class ScoreHistograms:
    """Counts the scores of mated and non-mated pairs by the groups of both sides.

    Thresholds are the edges of `bins` equal bins from `low` to `high`, and infinity: rates at edges are exact. Scores
    outside count in the bins at the ends.

    Raises ValueError where there is no bin.
    """

    def __init__(
        self, units: Units, grouping: Grouping, *, low: float = -1.0, high: float = 1.0, bins: int = 20_000
    ) -> None:
        if bins < 1 or not low < high:
            raise ValueError(f"{bins} bins from {low} to {high}")
        self.grouping = grouping
        self._group_N = grouping.group_U[units.unit_N]
        self.threshold_B = np.append(np.linspace(low, high, bins + 1), np.inf)
        self._cell_GG = np.zeros((len(grouping), len(grouping)), dtype=np.int64)
        for f, (a, b) in enumerate(cells(grouping)):
            self._cell_GG[a, b] = self._cell_GG[b, a] = f
        self._count_2FB = np.zeros((2, len(cells(grouping)), len(self.threshold_B)), dtype=np.int64)

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Counts a block of pairs, each once, as positions among the units' N images; UserError on a NaN score."""
        score_M = np.asarray(score_M, dtype=np.float64)
        if np.isnan(score_M).any():
            raise UserError(f"the score of pair {int(np.argmax(np.isnan(score_M)))} of a block is no number")
        bin_M = np.maximum(np.searchsorted(self.threshold_B, score_M, side="right") - 1, 0)
        cell_M = self._cell_GG[self._group_N[left_M], self._group_N[right_M]]
        kind_M = np.asarray(mated_M, dtype=np.int64)
        key_M = np.ravel_multi_index((kind_M, cell_M, bin_M), self._count_2FB.shape)
        np.add.at(self._count_2FB.reshape(-1), key_M, 1)

    def overall(self) -> Det:
        """The trade-off of all pairs."""
        return self._det(self._count_2FB.sum(axis=1))

    def within(self, group: int) -> Det:
        """The trade-off of the pairs within one group."""
        return self.across(group, group)

    def across(self, left: int, right: int) -> Det:
        """The trade-off of the pairs of two groups."""
        return self._det(self._count_2FB[:, self._cell_GG[left, right]])

    def own_thresholds(self, fmr: float) -> tuple[OwnThreshold, ...]:
        """For each group its rates at the threshold of all pairs for that FMR, and at the one of its own pairs.

        Raises UserError where no threshold of all pairs has so small an FMR.
        """
        overall = self.overall()
        shared = overall.threshold_at(fmr)
        if shared is None:
            raise UserError(f"no threshold has an FMR of {fmr:g}: {overall.non_mated} non-mated pairs are too few")
        rows = []
        for g, name in enumerate(self.grouping.names):
            det = self.within(g)
            own = det.threshold_at(fmr)
            at_own = (None,) * 3 if own is None else (float(det.threshold_B[own]), *self._rates(det, own))
            rows.append(OwnThreshold(name, *at_own, *self._rates(det, shared), expected_errors=fmr * det.non_mated))
        return tuple(rows)

    def _det(self, count_2B: np.ndarray) -> Det:
        non_mated_B, mated_B = count_2B
        non_mated, mated = int(non_mated_B.sum()), int(mated_B.sum())
        with np.errstate(invalid="ignore"):
            fmr_B = np.cumsum(non_mated_B[::-1])[::-1] / non_mated if non_mated else np.full(len(non_mated_B), np.nan)
            fnmr_B = (np.cumsum(mated_B) - mated_B) / mated if mated else np.full(len(mated_B), np.nan)
        return Det(self.threshold_B, fmr_B, fnmr_B, non_mated, mated)

    @staticmethod
    def _rates(det: Det, position: int) -> tuple[float | None, float | None]:
        rates = det.fmr_B[position], det.fnmr_B[position]
        return tuple(None if np.isnan(rate) else float(rate) for rate in rates)
