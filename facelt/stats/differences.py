"""Differences and ratios of two rates: limits at any level, and the p-values that follow from these limits.

The p-value of a difference is 1 minus the highest level at which its limits exclude 0, so that limits at a level
exclude 0 if and only if p is below 1 - level.

K pairs of figures, 2 the two of a pair, F figures, I identities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from facelt.stats.intervals import RateIntervals, satterthwaite_dof, wilson_limits

# Smaller p-values are not distinguished.
_SMALLEST_ERROR = 1e-15
# Halvings of the logarithm of the error share, to 14 digits.
_HALVINGS = 55


@dataclass(frozen=True, eq=False)
class RateDifferences:
    """First minus second rate of K pairs of figures, which may share identities; NaN without trials.

    `correlation_K` is that of the two jackknife influences, 0 for disjoint identities. `deviation_K` and
    `deviation_dof_K` are the jackknife standard deviation of the difference and its degrees of freedom, NaN for
    disjoint identities; `log_deviation_K` and `log_dof_K` those of the logarithm of the ratio.
    """

    rate_K2: np.ndarray
    effective_K2: np.ndarray
    dof_K2: np.ndarray
    identities_K2: np.ndarray
    correlation_K: np.ndarray
    deviation_K: np.ndarray
    deviation_dof_K: np.ndarray
    log_deviation_K: np.ndarray
    log_dof_K: np.ndarray

    @classmethod
    def between(cls, intervals: RateIntervals, first_K: Sequence[int], second_K: Sequence[int]) -> "RateDifferences":
        """Returns the differences of the figures at these positions."""
        index_K2 = np.stack([first_K, second_K], axis=1).astype(np.int64).reshape(-1, 2)
        influence_KI, other_KI = (intervals.influence_FI[index_K] for index_K in index_K2.T)
        rate_K2 = intervals.rate_F[index_K2]
        is_shared_K = ((influence_KI != 0) & (other_KI != 0)).any(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            norm_K = np.sqrt((influence_KI**2).sum(axis=1) * (other_KI**2).sum(axis=1))
            correlation_K = np.where(is_shared_K, (influence_KI * other_KI).sum(axis=1) / norm_K, 0)
            logs = influence_KI / rate_K2[:, :1], other_KI / rate_K2[:, 1:]
        least_dof_K = intervals.dof_F[index_K2].min(axis=1)
        deviations = [
            np.where(is_shared_K, value_K, np.nan)
            for a_KI, b_KI in ((influence_KI, other_KI), logs)
            for value_K in _jackknife_deviation(a_KI - b_KI, least_dof_K)
        ]
        of_figures = (intervals.effective_F, intervals.dof_F, intervals.identities_F)
        return cls(rate_K2, *(value_F[index_K2] for value_F in of_figures), correlation_K, *deviations)

    @classmethod
    def concatenate(cls, parts: Sequence["RateDifferences"]) -> "RateDifferences":
        """Returns the pairs of one or more collections in one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def only(self, pairs: Sequence[int]) -> "RateDifferences":
        """Returns the pairs at these positions."""
        return RateDifferences(*(getattr(self, field.name)[list(pairs)] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.rate_K2)

    @property
    def difference_K(self) -> np.ndarray:
        """First minus second rate, [K]."""
        return self.rate_K2[:, 0] - self.rate_K2[:, 1]

    def limits(self, level: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the limits of the differences at one level or one per pair, [K] each.

        The distances of the limits of both rates are combined like standard errors, with the correlation of the rates
        (MOVER: Newcombe, Statistics in Medicine 1998; Zou, Psychological Methods 2007). If the rates share identities,
        the result is the mean of those limits and of the jackknife t limits of the difference: for positively
        correlated rates the former are skewed too much and the latter not at all (docs/auditing.md has the coverage).
        NaN with trials of fewer than two identities; -1 and 1 at a level that so few identities cannot reach.
        """
        return self._limits(1 - np.asarray(level, dtype=np.float64), self.smallest_p())

    def ratio_limits(self, level: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the limits of first over second rate, [K] each, from those of the log difference (Zou, Donner 2008).

        If a rate is 0, one limit is exact: 0 without events in the first, infinity without events in the second; the
        other is the quotient of the two single limits. NaN if neither has an event.
        """
        error_K = np.broadcast_to(1 - np.asarray(level, dtype=np.float64), len(self))
        low_K2, high_K2 = self._single_limits(error_K)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_K = self.rate_K2[:, 0] / self.rate_K2[:, 1]
            logs = np.log(self.rate_K2), np.log(low_K2), np.log(high_K2)
            below_K, above_K = self._margins(*logs, error_K, self.log_deviation_K, self.log_dof_K)
            low_K, high_K = ratio_K * np.exp(-below_K), ratio_K * np.exp(above_K)
            has_none_K2 = self.rate_K2 == 0
            low_K = np.where(has_none_K2[:, 1], low_K2[:, 0] / high_K2[:, 1], low_K)
            high_K = np.where(has_none_K2[:, 0], high_K2[:, 0] / low_K2[:, 1], high_K)
        low_K, high_K = np.where(has_none_K2[:, 0], 0, low_K), np.where(has_none_K2[:, 1], np.inf, high_K)
        is_reachable_K, is_known_K = error_K > self.smallest_p(), ~has_none_K2.all(axis=1) & self._is_known_K
        low_K, high_K = np.where(is_reachable_K, low_K, 0), np.where(is_reachable_K, high_K, np.inf)
        return np.where(is_known_K, low_K, np.nan), np.where(is_known_K, high_K, np.nan)

    def p_values(self) -> np.ndarray:
        """Returns the p-value of each difference, [K]: the smallest 1 - level whose limits exclude 0.

        It is at least `smallest_p`; 1 with trials of fewer than two identities, NaN without trials.
        """
        smallest_K = self.smallest_p()

        def excludes_zero(error_K: np.ndarray) -> np.ndarray:
            low_K, high_K = self._limits(error_K, np.zeros(len(self)))
            return (low_K > 0) | (high_K < 0)

        p_K = np.maximum(_smallest_error(excludes_zero, len(self)), smallest_K)
        return np.where(np.isnan(self.difference_K), np.nan, p_K)

    def smallest_p(self) -> np.ndarray:
        """Returns the smallest p-value that the numbers of identities can reach, [K]; 1 with fewer than two of either.

        It is that of the rates 0 and 1 if all trials of a person end the same, so that a person counts as one trial: no
        number of photographs stands for other people.
        """
        numbers, index_K = np.unique(self.identities_K2, axis=0, return_inverse=True)
        return np.array([_smallest_p(*pair) for pair in numbers.tolist()])[index_K.reshape(-1)]

    @property
    def _is_known_K(self) -> np.ndarray:
        return (self.identities_K2 >= 2).all(axis=1)

    def _limits(self, error_K: np.ndarray, smallest_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the limits at level 1 - `error_K`, -1 and 1 if that is not above `smallest_K`."""
        error_K = np.broadcast_to(error_K, len(self))
        limits = self.rate_K2, *self._single_limits(error_K)
        below_K, above_K = self._margins(*limits, error_K, self.deviation_K, self.deviation_dof_K)
        low_K = np.where(error_K > smallest_K, np.maximum(self.difference_K - below_K, -1), -1)
        high_K = np.where(error_K > smallest_K, np.minimum(self.difference_K + above_K, 1), 1)
        return np.where(self._is_known_K, low_K, np.nan), np.where(self._is_known_K, high_K, np.nan)

    def _single_limits(self, error_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the limits of both rates of each pair, [K,2] each."""
        return wilson_limits(self.rate_K2, self.effective_K2, _t_quantile(self.dof_K2, error_K[:, None]))

    def _margins(
        self,
        value_K2: np.ndarray,
        low_K2: np.ndarray,
        high_K2: np.ndarray,
        error_K: np.ndarray,
        deviation_K: np.ndarray,
        dof_K: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distances of both limits from a difference of the values, [K] each."""
        fall_K2, rise_K2 = value_K2 - low_K2, high_K2 - value_K2
        below_K = _combined(fall_K2[:, 0], rise_K2[:, 1], self.correlation_K)
        above_K = _combined(rise_K2[:, 0], fall_K2[:, 1], self.correlation_K)
        is_disjoint_K = np.isnan(deviation_K)
        half_K = _t_quantile(np.where(is_disjoint_K, 1, dof_K), error_K) * deviation_K
        return tuple(np.where(is_disjoint_K, margin_K, (margin_K + half_K) / 2) for margin_K in (below_K, above_K))


def _jackknife_deviation(influence_KI: np.ndarray, least_dof_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the jackknife standard deviation and its degrees of freedom, at most those given, at least 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        n_K = np.count_nonzero(influence_KI, axis=1)
        variance_K = (1 - 1 / np.maximum(n_K, 2)) * (influence_KI**2).sum(axis=1)
        return np.sqrt(variance_K), np.maximum(np.fmin(least_dof_K, satterthwaite_dof(influence_KI, n_K)), 1)


@lru_cache(maxsize=4096)
def _smallest_p(identities: int, other_identities: int) -> float:
    """Returns `RateDifferences.smallest_p` of one pair."""
    if min(identities, other_identities) < 2:
        return 1.0
    n_2 = np.array([identities, other_identities], dtype=np.float64)

    def excludes_zero(error_K: np.ndarray) -> np.ndarray:
        square_2 = _t_quantile(n_2 - 1, error_K) ** 2
        # Wilson's limits of the rates 0 and 1.
        return np.array([((square_2 / (n_2 + square_2)) ** 2).sum() < 1])

    return float(_smallest_error(excludes_zero, 1)[0])


def _t_quantile(dof: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Returns the t quantile exceeded, in size, with probability `error`."""
    from scipy.special import stdtrit

    return -stdtrit(dof, error / 2)


def _combined(a_K: np.ndarray, b_K: np.ndarray, correlation_K: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(a_K**2 + b_K**2 - 2 * correlation_K * a_K * b_K, 0))


def _smallest_error(excludes_zero: Callable[[np.ndarray], np.ndarray], pairs: int) -> np.ndarray:
    """Returns the smallest error share at which limits exclude 0, [K]; 1 if they do at none."""
    low_K, high_K = np.full(pairs, np.log(_SMALLEST_ERROR)), np.zeros(pairs)
    high_K[excludes_zero(np.exp(low_K))] = low_K[0] if pairs else 0
    for _ in range(_HALVINGS):
        middle_K = (low_K + high_K) / 2
        is_excluded_K = excludes_zero(np.exp(middle_K))
        high_K, low_K = np.where(is_excluded_K, middle_K, high_K), np.where(is_excluded_K, low_K, middle_K)
    return np.exp(high_K)
