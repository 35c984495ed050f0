"""A fine grid of scores, so that billions of them can be counted in a histogram of fixed size. B bins."""

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
