"""How far images of a class stray from its mean: a Weibull distribution of the largest distances.

C classes, T distances of a tail.
"""

from dataclasses import dataclass

import numpy as np

TAIL = 20
# Two images are equally far from their mean but for rounding, one not at all: neither shows how distances vary.
FEWEST = 3
# Distances nearer to each other than this differ by the rounding of float32 logits.
EQUAL = 1e-6
SHIFT = 1e4


@dataclass(frozen=True, eq=False)
class Tails:
    """Weibull shape, location and scale of each class, float64 [C]; NaN where a class could not be fitted, and such a
    class finds no distance far.

    The fit is libmr's `fit_high`, which OpenMax's authors use: the tail is shifted so that its smallest distance
    becomes 10,000, and a Weibull of two parameters is fitted to it by maximum likelihood. It is scipy's weibull_min
    with the location (smallest distance - 10,000). With so large a shift it is a Gumbel distribution of minima in all
    but name, and a distance below the tail's smallest has a probability above 0 too. The likelihood's equation is
    solved here, because scipy's `fit`, which searches without gradients, ends far from the maximum at such shapes.
    """

    shape_C: np.ndarray
    location_C: np.ndarray
    scale_C: np.ndarray

    @classmethod
    def fit(cls, distance_N: np.ndarray, class_N: np.ndarray, classes: int) -> "Tails":
        """Fits each class to its `TAIL` largest distances, or to all where it has fewer."""
        order_N = np.lexsort((distance_N, class_N))
        ends_C = np.cumsum(np.bincount(class_N, minlength=classes))
        fitted = [_fit(part[-TAIL:]) for part in np.split(distance_N[order_N], ends_C[:-1])]
        return cls(*np.array(fitted, dtype=np.float64).T)

    @property
    def unfitted(self) -> int:
        """Classes with too few distances, or with equal ones."""
        return int(np.isnan(self.shape_C).sum())

    def strays(self, distance_N: np.ndarray, class_N: np.ndarray) -> np.ndarray:
        """How likely it is, float64 [N], that an image so far from the mean of that class is none of its own."""
        from scipy.stats import weibull_min

        parameters = (value_C[class_N] for value_C in (self.shape_C, self.location_C, self.scale_C))
        return np.nan_to_num(weibull_min.cdf(distance_N, *parameters), nan=0.0)


def _fit(distance_T: np.ndarray) -> tuple[float, float, float]:
    """Shape, location and scale for ascending distances."""
    from scipy.optimize import brentq

    if len(distance_T) < FEWEST or distance_T[-1] - distance_T[0] < EQUAL:
        return np.nan, np.nan, np.nan
    # Logarithms of the shifted distances, less the largest one's: near 0, where nothing is lost to the shift.
    log_T = np.log1p((distance_T - distance_T[-1]) / (SHIFT + distance_T[-1] - distance_T[0]))

    def slope(inverse: float) -> float:
        """Zero at the likelihood's maximum; `inverse` is 1 / shape."""
        weight_T = np.exp(log_T / inverse)
        return float(weight_T @ log_T / weight_T.sum() - inverse - log_T.mean())

    # The slope is near -mean > 0 at 0 and below 0 from -mean on, for the weighted mean of the logarithms is below 0.
    inverse = brentq(slope, -1e-3 * log_T.mean(), -log_T.mean(), xtol=1e-18, rtol=1e-12)
    largest = SHIFT + distance_T[-1] - distance_T[0]
    scale = largest * float(np.exp(log_T / inverse).mean() ** inverse)
    return 1 / inverse, distance_T[0] - SHIFT, scale
