"""Score histograms, operating points (FMR, FNMR) and the DET curve (ISO/IEC 19795-1).

A comparison is a match if its score is at or above the threshold. FMR (false match rate) is the share of non-mated
comparisons that match, FNMR (false non-match rate) the share of mated comparisons that do not. FAR and TAR = 1 - FNMR
are equivalent here, since no sample fails to enrol. The threshold for an FMR is the lowest that does not exceed it.

B bins, T thresholds.
"""

import math
from dataclasses import dataclass

import numpy as np

# Smallest scale of a grid: float32 cannot resolve scores far below it.
_MIN_SCALE = 2.0**-60
# Extra bins at either end for scores that rounding moves beyond the scale.
_MARGIN_BINS = 64
# Scores per call of OpenCV, which returns float32 counts, exact up to 2^24.
_MAX_CALL_SCORES = 1 << 23


@dataclass(frozen=True)
class ScoreGrid:
    """Grid of scores from -scale to scale in steps of scale / steps; `scale` and `steps` are powers of two.

    A bin holds the scores nearest to one multiple of the step, so round values (1 for equal images, 0, integers) lie in
    the middle of a bin and the rounding of float32 products does not separate equal scores.
    """

    scale: float = 1.0
    steps: int = 1 << 18

    @classmethod
    def for_bound(cls, bound: float, steps: int) -> "ScoreGrid":
        """Returns the grid for scores of at most `bound` in absolute value (1 for cosines)."""
        return cls(2.0 ** math.ceil(math.log2(max(bound, _MIN_SCALE))), steps)

    @property
    def bins(self) -> int:
        """Number of bins of a histogram."""
        return 2 * (self.steps + _MARGIN_BINS) + 1

    @property
    def resolution(self) -> float:
        """Width of a bin: the largest error of a threshold."""
        return self.scale / self.steps

    @property
    def ignored_score(self) -> float:
        """Score below all possible scores, which no bin counts."""
        return -2.0 * self.scale

    def threshold(self, index: int | np.ndarray) -> float | np.ndarray:
        """Returns the lower end of bin `index`: scores at or above it lie in this bin or a later one."""
        return (index - self.steps - _MARGIN_BINS - 0.5) * self.resolution

    def count(self, score: np.ndarray) -> np.ndarray:
        """Returns the histogram of `score` (float32 or float64, [N] or [N,M]), int64 [B]."""
        if score.dtype != np.float32:
            index = np.rint(score / self.resolution).astype(np.intp) + (self.steps + _MARGIN_BINS)
            return np.bincount(index[index >= 0].ravel(), minlength=self.bins)
        if not score.size:
            return np.zeros(self.bins, dtype=np.int64)
        import cv2

        # Twice as fast as numpy, and without an integer array of the size of the scores.
        count_B = np.zeros(self.bins, dtype=np.int64)
        ends = [self.threshold(0), self.threshold(self.bins)]
        rows = max(1, _MAX_CALL_SCORES // max(1, score[:1].size))
        for start in range(0, len(score), rows):
            part = np.ascontiguousarray(score[start : start + rows])
            count_B += cv2.calcHist([part], [0], None, [self.bins], ends).ravel().astype(np.int64)
        return count_B


# Doddington's rule of 30 (Doddington et al., Speech Communication 31, 2000): with 30 errors the true rate is, with 90%
# confidence, within 30% of the observed one. The rule holds for independent trials, which pairs of a shared image or
# person are not: a rate with fewer errors is unsupported, one with more is not necessarily supported.
MIN_SUPPORTING_ERRORS = 30


def max_errors(rate: float, trials: int) -> int:
    """Returns the largest number of errors in `trials` that does not exceed `rate`, robust to float rounding."""
    return math.floor(rate * trials * (1 + 1e-12))


def top_threshold_reason(threshold: float, highest_score: float, *, is_cosine: bool) -> str | None:
    """Returns why no score lies above a threshold, as the end of a sentence, or None if scores do.

    `highest_score` is the highest one observed, mated or not, or the lower end of its bin.
    """
    if is_cosine and threshold >= 1 - ScoreGrid().resolution:
        return "is as high as the similarity of two copies of one image, so that no other pair can match"
    if threshold >= highest_score:
        return "is not below the highest score observed, so that no score lies above it"
    return None


@dataclass(frozen=True)
class OperatingPoint:
    """Errors at the lowest threshold that keeps FMR at or below `wanted`.

    If there is no such threshold, the numbers are None and `reason` says why. `supported` is true if there are enough
    non-mated comparisons for `MIN_SUPPORTING_ERRORS` errors at the wanted rate; unsupported numbers are uncertain.
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
    """DET curve: thresholds float64 [T], descending, with FMR and FNMR [T] as fractions."""

    threshold_T: np.ndarray
    fmr_T: np.ndarray
    fnmr_T: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoreHistograms:
    """Histograms of mated and non-mated comparisons, int64 [B] on `grid`; thresholds are the ends of its bins."""

    grid: ScoreGrid
    mated_B: np.ndarray
    nonmated_B: np.ndarray

    @property
    def mated(self) -> int:
        """Number of mated comparisons."""
        return int(self.mated_B.sum())

    @property
    def nonmated(self) -> int:
        """Number of non-mated comparisons."""
        return int(self.nonmated_B.sum())

    @property
    def highest_score(self) -> float:
        """Lower end of the highest bin with a comparison; -inf without comparisons."""
        (index_M,) = np.nonzero(self.mated_B + self.nonmated_B)
        return float(self.grid.threshold(index_M[-1])) if len(index_M) else -math.inf

    @property
    def smallest_fmr(self) -> float | None:
        """Smallest FMR at which `MIN_SUPPORTING_ERRORS` false matches can occur; None without comparisons."""
        return MIN_SUPPORTING_ERRORS / self.nonmated if self.nonmated else None

    def point(self, fmr: float) -> OperatingPoint:
        """Returns the operating point at an FMR. Raises ValueError unless 0 < wanted <= 1."""
        return self.points([fmr])[0]

    def points(self, fmr: list[float] | tuple[float, ...]) -> tuple[OperatingPoint, ...]:
        """Returns the operating point at each FMR. Raises ValueError unless all lie in (0, 1]."""
        if invalid := [rate for rate in fmr if not 0 < rate <= 1]:
            raise ValueError(f"FMR {invalid[0]}: must be above 0 and at most 1")
        above_B, matched_B = _at_or_above(self.nonmated_B), _at_or_above(self.mated_B)
        return tuple(self._point(rate, above_B, matched_B) for rate in fmr)

    def _point(self, fmr: float, above_B: np.ndarray, matched_B: np.ndarray) -> OperatingPoint:
        total = self.nonmated
        if not total or not self.mated:
            return OperatingPoint(fmr, reason=f"there are {self.mated:,} mated and {total:,} non-mated comparisons")
        if (allowed := max_errors(fmr, total)) < 1:
            needed = math.ceil(1 / fmr)
            reason = f"a rate of {fmr:g} needs {needed:,} non-mated comparisons; there are {total:,}"
            return OperatingPoint(fmr, reason=reason)
        index = _first_within(above_B, allowed)
        return OperatingPoint(
            fmr,
            threshold=float(self.grid.threshold(index)),
            fmr=int(above_B[index]) / total,
            fnmr=1 - int(matched_B[index]) / self.mated,
            false_matches=int(above_B[index]),
            supported=allowed >= MIN_SUPPORTING_ERRORS,
        )

    def det(self, per_decade: int = 10) -> DetCurve:
        """Returns FMR and FNMR at log-spaced FMRs, from one error up to 1.

        Empty if there are no mated or no non-mated comparisons.
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
    """Returns the number of comparisons in each bin or a later one, and a final 0: int64 [B + 1], descending."""
    return np.append(np.cumsum(count_B[::-1])[::-1], 0)


def _first_within(above_B: np.ndarray, allowed: int | np.ndarray) -> np.ndarray:
    """Returns the first bin with at most `allowed` comparisons in it and all later bins."""
    return len(above_B) - np.searchsorted(above_B[::-1], allowed, side="right")
