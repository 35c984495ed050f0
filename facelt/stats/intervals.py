"""Intervals of error rates whose trials are alike within an identity: Wilson's, with the trials they are worth.

A rate's variance is measured by leaving out one identity at a time, with every pair it takes part in. From it follows
how many independent trials would be as uncertain (`effective`); Wilson's score interval of that many, widened by the t
quantile of as many degrees of freedom as identities carry the rate, is the interval. It needs no replicate, stays
within 0 and 1, and holds where a percentile bootstrap of few identities is too narrow (`benchmarks.interval_coverage`).

F figures (a group, or two groups whose pairs are compared), I identities.

How sure a rate over pairs is, when the pairs of one identity are not independent.

I identities, F figures, R replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False)
class ClusteredCounts:
    """Errors among trials of each figure, [F], and of those the ones that each identity has a part in, [F,I].

    A search, or a pair of two images of one person, touches one identity, so that rows sum to the totals; a pair of two
    people touches two, and rows sum to twice the totals. Trials that touch nobody (a distractor's) are in the totals
    alone.
    """

    error_F: np.ndarray
    trial_F: np.ndarray
    error_FI: np.ndarray
    trial_FI: np.ndarray

    @classmethod
    def by_identity(cls, error_FI: np.ndarray, trial_FI: np.ndarray) -> "ClusteredCounts":
        """Counts where each trial belongs to one identity; raises ValueError on unequal shapes or errors > trials."""
        error_FI, trial_FI = np.atleast_2d(error_FI).astype(np.float64), np.atleast_2d(trial_FI).astype(np.float64)
        if error_FI.shape != trial_FI.shape:
            raise ValueError(f"errors are {list(error_FI.shape)} and trials {list(trial_FI.shape)}")
        if (error_FI < 0).any() or (error_FI > trial_FI).any():
            raise ValueError("errors must lie between 0 and the trials")
        return cls(error_FI.sum(axis=1), trial_FI.sum(axis=1), error_FI, trial_FI)

    def only(self, figures: Sequence[int]) -> "ClusteredCounts":
        """The counts of the figures at these positions."""
        return ClusteredCounts(*(getattr(self, field.name)[list(figures)] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class RateIntervals:
    """Rates with their limits, [F]; NaN where there is no trial, and no limits where no identity was tested.

    `identities_F` counts the identities with trials, `effective_F` the independent trials these are worth, `dof_F`
    the degrees of freedom of the limits, and `influence_FI` is what leaving out an identity does to the rate, for the
    covariance of two figures.
    """

    rate_F: np.ndarray
    low_F: np.ndarray
    high_F: np.ndarray
    error_F: np.ndarray
    trial_F: np.ndarray
    identities_F: np.ndarray
    effective_F: np.ndarray
    dof_F: np.ndarray
    influence_FI: np.ndarray
    level: float

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """Limits of rate `first` minus rate `second`, whether or not they share identities.

        Distances of the single limits, joined as variances are, with the correlation of the two rates (MOVER: Newcombe,
        Statistics in Medicine 1998; Zou, Psychological Methods 2007). Where they share identities, the mean of those
        limits and of the difference's own jackknife t limits: of rates that rise and fall together, the first lean too
        far to one side and the second do not lean (docs/auditing.md has the coverage of the mean).
        """
        below, above = self._reach(first, second, (self.rate_F, self.low_F, self.high_F), self.influence_FI)
        middle = self.rate_F[first] - self.rate_F[second]
        return float(max(middle - below, -1.0)), float(min(middle + above, 1.0))

    def ratio(self, first: int, second: int) -> tuple[float, float]:
        """Limits of rate `first` over rate `second`: those of a difference of logarithms (Zou and Donner 2008).

        Where a rate is 0 only one limit is known: 0 without errors in `first`, infinity without errors in `second`; the
        other is the quotient of the two single limits. NaN where neither has an error.
        """
        a, b = self.rate_F[first], self.rate_F[second]
        if not a + b > 0:
            return float("nan"), float("nan")
        if a == 0:
            return 0.0, float(self.high_F[first] / self.low_F[second])
        if b == 0:
            return float(self.low_F[first] / self.high_F[second]), float("inf")
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.rate_F), np.log(self.low_F), np.log(self.high_F)
            influence_FI = self.influence_FI / self.rate_F[:, None]
        below, above = self._reach(first, second, logs, influence_FI)
        return float(a / b * np.exp(-below)), float(a / b * np.exp(above))

    def _reach(
        self, first: int, second: int, limits: tuple[np.ndarray, np.ndarray, np.ndarray], influence_FI: np.ndarray
    ) -> tuple[float, float]:
        """How far the limits of a difference lie below and above it; `limits` are the middles, lows and highs."""
        # Of the two alone: another rate may be 0 and have no logarithm.
        (a, b), (a_low, b_low), (a_high, b_high) = ((limit_F[first], limit_F[second]) for limit_F in limits)
        a_I, b_I = influence_FI[first], influence_FI[second]
        shared = bool(((a_I != 0) & (b_I != 0)).any())
        correlation = float(a_I @ b_I / np.sqrt((a_I @ a_I) * (b_I @ b_I))) if shared else 0.0
        below = _joined(a - a_low, b_high - b, correlation)
        above = _joined(a_high - a, b - b_low, correlation)
        if not shared:
            return below, above
        half = self._half_width(a_I - b_I, min(self.dof_F[first], self.dof_F[second]))
        return (below + half) / 2, (above + half) / 2

    def _half_width(self, influence_I: np.ndarray, dof: float) -> float:
        from scipy.special import stdtrit

        n = np.array([np.count_nonzero(influence_I)])
        dof = min(dof, _satterthwaite_dof(influence_I[None], n)[0])
        return float(stdtrit(max(dof, 1), 0.5 + self.level / 2) * np.sqrt(_variance(influence_I[None], n)[0]))


def rate_intervals(counts: ClusteredCounts, *, level: float) -> RateIntervals:
    """The rates of one kind of error with limits that hold together with the likeness of an identity's trials.

    Jackknife variance over identities (Davison and Hinkley 1997, 3.2.1), effective trials r (1 - r) / variance
    (Fogliato, Patil and Perona, Confidence Intervals for Error Rates in 1:1 Matching Tasks, IJCV 2024), but never more
    than there are; Wilson's limits with the t quantile of `_degrees_of_freedom`. Figures whose
    every trial ends alike show no variance: their trials are taken to be as alike within identities as those of the
    other figures are on average, wholly so where there are none.

    Raises ValueError on a level outside (0, 1).
    """
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_F = counts.error_F / counts.trial_F
        left_FI = counts.trial_F[:, None] - counts.trial_FI
        influence_FI = np.where(counts.trial_FI > 0, (counts.error_FI - rate_F[:, None] * counts.trial_FI) / left_FI, 0)
        # The size of the identity that an average trial touches.
        alike_F = (counts.trial_FI**2).sum(axis=1) / counts.trial_FI.sum(axis=1)
    identities_F = (counts.trial_FI > 0).sum(axis=1)
    known_F = identities_F >= 2
    influence_FI[~known_F | ~np.isfinite(influence_FI).all(axis=1)] = 0
    variance_F = _variance(influence_FI, identities_F)
    effective_F = _effective(rate_F, variance_F, counts.trial_F, alike_F)
    dof_F = _degrees_of_freedom(counts.trial_FI, influence_FI, identities_F)
    low_F, high_F = wilson_limits(rate_F, effective_F, stdtrit(dof_F, 0.5 + level / 2))
    low_F[~known_F], high_F[~known_F] = np.nan, np.nan
    return RateIntervals(
        rate_F, low_F, high_F, counts.error_F, counts.trial_F, identities_F, effective_F, dof_F, influence_FI, level
    )


def wilson_limits(rate_F: np.ndarray, trial_F: np.ndarray, quantile_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score limits of rates in so many independent trials (Wilson, JASA 1927); NaN without trials."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pull_F = quantile_F**2 / trial_F
        middle_F = (rate_F + pull_F / 2) / (1 + pull_F)
        half_F = np.sqrt(pull_F * rate_F * (1 - rate_F) + pull_F**2 / 4) / (1 + pull_F)
    return np.clip(middle_F - half_F, 0, 1), np.clip(middle_F + half_F, 0, 1)


def _degrees_of_freedom(trial_FI: np.ndarray, influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the variance over identities, [F], at least 1: the smaller one of two numbers.

    Kish's effective number of identities less one, (sum_i N_i)^2 / sum_i N_i^2 - 1: a variance that a few people with
    many trials carry. And Satterthwaite's of the influences u_i that were seen, 2 (sum u^2)^2 / (sum u^4 - (sum u^2)^2
    / I), which is I where they are normal: a variance that a few people with many errors carry.
    """
    kish_F = _divide(trial_FI.sum(axis=1) ** 2, (trial_FI**2).sum(axis=1)) - 1
    return np.maximum(np.fmin(kish_F, _satterthwaite_dof(influence_FI, identities_F)), 1)


def _satterthwaite_dof(influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    square_F = (influence_FI**2).sum(axis=1) ** 2
    spread_F = (influence_FI**4).sum(axis=1) - square_F / np.maximum(identities_F, 1)
    return np.where(spread_F > 0, _divide(2 * square_F, spread_F), np.inf)


def _variance(influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    return (1 - 1 / np.maximum(identities_F, 2)) * (influence_FI**2).sum(axis=1)


def _effective(rate_F: np.ndarray, variance_F: np.ndarray, trial_F: np.ndarray, alike_F: np.ndarray) -> np.ndarray:
    """Independent trials worth as much, [F]; `alike_F` the size of the identity an average trial touches."""
    seen_F = variance_F > 0
    effective_F = np.minimum(_divide(rate_F * (1 - rate_F), np.where(seen_F, variance_F, 1)), trial_F)
    # The intraclass correlation: 0 where trials are independent, 1 where all of one identity's end alike.
    clustered_F = seen_F & (alike_F > 1)
    likeness_F = (trial_F[clustered_F] / effective_F[clustered_F] - 1) / (alike_F[clustered_F] - 1)
    likeness = np.clip(likeness_F, 0, 1).mean() if clustered_F.any() else 1.0
    return np.where(seen_F, effective_F, _divide(trial_F, 1 + (np.maximum(alike_F, 1) - 1) * likeness))


def _joined(a: float, b: float, correlation: float) -> float:
    return float(np.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0)))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def bootstrap_rates(
    hit_FI: np.ndarray, pair_FI: np.ndarray, *, replicates: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of F pair rates by resampling identities with replacement: low [F] and high [F].

    `hit_FI[f, i]` of the `pair_FI[f, i]` pairs of identity i count for figure f; all figures share the same replicates,
    so that one draw is one imagined set of people. A replicate in which a figure has no pair says nothing about it and
    is left out. NaN where fewer than two identities have pairs: one person's data cannot tell how people differ.

    Cluster bootstrap with percentile limits (Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8
    and 5.3). Raises ValueError on a level outside (0, 1), no replicate, or unequal shapes.
    """
    hit_FI, pair_FI = np.atleast_2d(hit_FI).astype(np.float64), np.atleast_2d(pair_FI).astype(np.float64)
    if hit_FI.shape != pair_FI.shape:
        raise ValueError(f"hits are {list(hit_FI.shape)} and pairs {list(pair_FI.shape)}")
    if not 0 < level < 1 or replicates < 1:
        raise ValueError(f"level {level} must lie between 0 and 1 and replicates {replicates} be positive")
    low_F, high_F = np.full((2, len(hit_FI)), np.nan)
    known_F = (pair_FI > 0).sum(axis=1) >= 2
    if not known_F.any():
        return low_F, high_F
    identities = pair_FI.shape[1]
    drawn_RI = np.random.default_rng(seed).multinomial(identities, np.full(identities, 1 / identities), size=replicates)
    drawn_IR = drawn_RI.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        rate_FR = (hit_FI[known_F] @ drawn_IR) / (pair_FI[known_F] @ drawn_IR)
    tail = (1 - level) / 2
    low_F[known_F], high_F[known_F] = np.nanquantile(rate_FR, [tail, 1 - tail], axis=1)
    return low_F, high_F
