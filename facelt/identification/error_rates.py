"""A fine grid of scores, so that billions of them can be counted in a histogram of fixed size. B bins.

Match errors from histograms of scores: operating points and the DET curve (ISO/IEC 19795-1).

A comparison is a match when its score is at or above the threshold. FMR (false match rate) is the share of non-mated
comparisons that match, FNMR (false non-match rate) that of mated ones that do not; FAR and TAR = 1 - FNMR are the same
where, as here, no sample fails to be enrolled. The threshold for an FMR is the lowest that does not exceed it.

B bins, T thresholds.
"""

import math
from dataclasses import dataclass

import numpy as np

# Scores below this are one score: float32 has no room for what lies far beneath.
SMALLEST = 2.0**-60
# Bins at either end for scores that rounding carries beyond the scale.
MARGIN = 64
# OpenCV hands counts over as float32, which is exact up to 2^24 a call.
CALL = 1 << 23


@dataclass(frozen=True)
class ScoreGrid:
    """Scores from -scale to scale, rounded to multiples of scale / steps; `scale` and `steps` are powers of two.

    A bin holds the scores nearest to one multiple, so that round values (1 for equal images, 0, whole numbers) lie in
    the middle of a bin, where the rounding of a float32 product does not part equal scores.
    """

    scale: float = 1.0
    steps: int = 1 << 18

    @classmethod
    def reaching(cls, bound: float, steps: int) -> "ScoreGrid":
        """The grid for scores up to `bound` in size; for cosines that is 1."""
        return cls(2.0 ** math.ceil(math.log2(max(bound, SMALLEST))), steps)

    @property
    def bins(self) -> int:
        """How many bins a histogram has."""
        return 2 * (self.steps + MARGIN) + 1

    @property
    def resolution(self) -> float:
        """Width of a bin, in units of the score: the most a threshold can be off."""
        return self.scale / self.steps

    @property
    def left_out(self) -> float:
        """A score that no bin counts, below every score there can be."""
        return -2.0 * self.scale

    def threshold(self, index: int | np.ndarray) -> float | np.ndarray:
        """The lower end of bin `index`: scores at or above it lie in this bin or a later one."""
        return (index - self.steps - MARGIN - 0.5) * self.resolution

    def count(self, score: np.ndarray) -> np.ndarray:
        """How many of `score` (float32 or float64, [N] or [N,M]) lie in each bin: int64 [B]."""
        if score.dtype != np.float32:
            place = np.rint(score / self.resolution).astype(np.intp) + (self.steps + MARGIN)
            return np.bincount(place[place >= 0].ravel(), minlength=self.bins)
        if not score.size:
            return np.zeros(self.bins, dtype=np.int64)
        import cv2

        # Half the time of numpy's steps, and without an integer for each score.
        count_B = np.zeros(self.bins, dtype=np.int64)
        ends = [self.threshold(0), self.threshold(self.bins)]
        rows = max(1, CALL // max(1, score[:1].size))
        for start in range(0, len(score), rows):
            part = np.ascontiguousarray(score[start : start + rows])
            count_B += cv2.calcHist([part], [0], None, [self.bins], ends).ravel().astype(np.int64)
        return count_B


# Doddington's rule of 30 (Doddington et al., Speech Communication 31, 2000): with 30 errors a true rate is, with 90%
# confidence, within 30% of the rate seen. For independent trials; pairs that share an image or a person are not, so a
# rate below this is surely unsupported, one above it not surely supported.
ENOUGH_ERRORS = 30


def allowed_errors(rate: float, trials: int) -> int:
    """The most errors in `trials` that do not exceed `rate`; 0.29 of 100 is 29, whatever the product is as a float."""
    return math.floor(rate * trials * (1 + 1e-12))


@dataclass(frozen=True)
class OperatingPoint:
    """The errors at the lowest threshold that keeps FMR at or below `wanted`.

    Without an answer the numbers are None and `reason` says why. `supported` tells whether the non-mated comparisons
    suffice for `ENOUGH_ERRORS` errors at the wanted rate; the numbers below that are counted, but uncertain.
    """

    wanted: float
    threshold: float | None = None
    fmr: float | None = None
    fnmr: float | None = None
    false_matches: int | None = None
    supported: bool = False
    reason: str | None = None

    @property
    def tar(self) -> float | None:
        """True accept rate, 1 - FNMR."""
        return None if self.fnmr is None else 1.0 - self.fnmr


@dataclass(frozen=True, eq=False)
class DetCurve:
    """Thresholds descending, float64 [T], with FMR and FNMR [T] at each; fractions."""

    threshold_T: np.ndarray
    fmr_T: np.ndarray
    fnmr_T: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoreHistograms:
    """Mated and non-mated comparisons by score: counts int64 [B] on `grid`. Thresholds are ends of its bins."""

    grid: ScoreGrid
    mated_B: np.ndarray
    nonmated_B: np.ndarray

    @property
    def mated(self) -> int:
        """How many mated comparisons."""
        return int(self.mated_B.sum())

    @property
    def nonmated(self) -> int:
        """How many non-mated comparisons."""
        return int(self.nonmated_B.sum())

    @property
    def smallest_fmr(self) -> float | None:
        """The smallest FMR at which `ENOUGH_ERRORS` false matches can be seen; None without comparisons."""
        return ENOUGH_ERRORS / self.nonmated if self.nonmated else None

    def point(self, wanted: float) -> OperatingPoint:
        """The operating point at an FMR. Raises ValueError unless 0 < wanted <= 1."""
        return self.points([wanted])[0]

    def points(self, wanted: list[float] | tuple[float, ...]) -> tuple[OperatingPoint, ...]:
        """The operating point at each FMR. Raises ValueError unless all lie in (0, 1]."""
        if wrong := [rate for rate in wanted if not 0 < rate <= 1]:
            raise ValueError(f"a rate of {wrong[0]} is asked for; it must be above 0 and at most 1")
        above_B, matched_B = _at_or_above(self.nonmated_B), _at_or_above(self.mated_B)
        return tuple(self._point(rate, above_B, matched_B) for rate in wanted)

    def _point(self, wanted: float, above_B: np.ndarray, matched_B: np.ndarray) -> OperatingPoint:
        total = self.nonmated
        if not total or not self.mated:
            return OperatingPoint(wanted, reason=f"there are {self.mated:,} mated and {total:,} non-mated comparisons")
        if (allowed := allowed_errors(wanted, total)) < 1:
            needed = math.ceil(1 / wanted)
            reason = f"a rate of {wanted:g} needs {needed:,} non-mated comparisons; there are {total:,}"
            return OperatingPoint(wanted, reason=reason)
        index = _first_within(above_B, allowed)
        return OperatingPoint(
            wanted,
            threshold=float(self.grid.threshold(index)),
            fmr=int(above_B[index]) / total,
            fnmr=1 - int(matched_B[index]) / self.mated,
            false_matches=int(above_B[index]),
            supported=allowed >= ENOUGH_ERRORS,
        )

    def det(self, per_decade: int = 10) -> DetCurve:
        """FMR and FNMR at the thresholds of FMRs spaced evenly in their logarithm, from one error up to 1.

        Empty where there are no mated or no non-mated comparisons.
        """
        total, mated = self.nonmated, self.mated
        if not total or not mated:
            return DetCurve(*np.empty((3, 0)))
        above_B, matched_B = _at_or_above(self.nonmated_B), _at_or_above(self.mated_B)
        steps = math.ceil(per_decade * math.log10(total))
        wanted_T = 10.0 ** (-np.arange(steps + 1) / per_decade)
        allowed_T = np.maximum(1, np.floor(total * wanted_T * (1 + 1e-12)).astype(np.int64))
        index_T = np.unique(_first_within(above_B, allowed_T))[::-1]
        return DetCurve(self.grid.threshold(index_T), above_B[index_T] / total, 1 - matched_B[index_T] / mated)


def _at_or_above(count_B: np.ndarray) -> np.ndarray:
    """Comparisons in each bin or a later one, and 0 beyond the last: int64 [B + 1], descending."""
    return np.append(np.cumsum(count_B[::-1])[::-1], 0)


def _first_within(above_B: np.ndarray, allowed: int | np.ndarray) -> np.ndarray:
    """The first bin from which on no more than `allowed` comparisons lie, or the end beyond the last bin."""
    return len(above_B) - np.searchsorted(above_B[::-1], allowed, side="right")
