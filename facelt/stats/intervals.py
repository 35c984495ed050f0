"""Confidence intervals of error rates over trials clustered by identity: Wilson limits of the effective trials.

The variance of a rate is the jackknife over identities, each left out with every pair it takes part in. It gives the
number of independent trials with the same uncertainty (`effective`); Wilson's score interval of that many trials, with
the t quantile of the degrees of freedom over identities, is the interval. It needs no replicates, stays within 0 and 1,
and holds its coverage where a percentile bootstrap over few identities is too narrow
(benchmarks/interval_coverage.py measures the coverage; `measured_coverage` looks it up).

F figures (the rate of a group, or of the pairs across two groups), I identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np


@dataclass(frozen=True, eq=False)
class ClusteredCounts:
    """Errors and trials of each figure, [F], and those that involve each identity, [F,I].

    A search, or a mated pair, involves one identity, so that rows sum to the totals; a non-mated pair involves two, and
    rows sum to twice the totals. Trials that involve no identity (of distractors) are in the totals only.
    """

    error_F: np.ndarray
    trial_F: np.ndarray
    error_FI: np.ndarray
    trial_FI: np.ndarray

    @classmethod
    def by_identity(cls, error_FI: np.ndarray, trial_FI: np.ndarray) -> "ClusteredCounts":
        """Returns counts of trials that involve one identity each; ValueError on unequal shapes or errors > trials."""
        error_FI, trial_FI = np.atleast_2d(error_FI).astype(np.float64), np.atleast_2d(trial_FI).astype(np.float64)
        if error_FI.shape != trial_FI.shape:
            raise ValueError(f"errors are {list(error_FI.shape)} and trials {list(trial_FI.shape)}")
        if (error_FI < 0).any() or (error_FI > trial_FI).any():
            raise ValueError("errors must lie between 0 and the trials")
        return cls(error_FI.sum(axis=1), trial_FI.sum(axis=1), error_FI, trial_FI)

    def only(self, figures: Sequence[int]) -> "ClusteredCounts":
        """Returns the counts of the figures at these positions."""
        return ClusteredCounts(*(getattr(self, field.name)[list(figures)] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class RateIntervals:
    """Rates with confidence limits, [F]: NaN without trials, limits NaN with trials of fewer than two identities.

    `identities_F` counts the identities with trials, `effective_F` is the effective number of trials, `dof_F` the
    degrees of freedom of the limits; `influence_FI` is the jackknife influence of each identity on the rate, from which
    the covariance of two figures follows (`facelt.stats.differences`).
    """

    rate_F: np.ndarray
    low_F: np.ndarray
    high_F: np.ndarray
    identities_F: np.ndarray
    effective_F: np.ndarray
    dof_F: np.ndarray
    influence_FI: np.ndarray
    level: float

    def at_level(self, level: float) -> "RateIntervals":
        """Returns the same rates with limits at another level."""
        quantile_F = _t_quantiles(self.dof_F, self.identities_F, level)
        limits = wilson_limits(self.rate_F, self.effective_F, quantile_F)
        return replace(self, low_F=limits[0], high_F=limits[1], level=level)


def rate_intervals(counts: ClusteredCounts, *, level: float, pooled: ClusteredCounts | None = None) -> RateIntervals:
    """Returns the rates of one kind of error with limits that account for trials clustered by identity.

    Jackknife variance over identities (Davison and Hinkley 1997, 3.2.1); effective trials r (1 - r) / variance
    (Fogliato, Patil and Perona, Confidence Intervals for Error Rates in 1:1 Matching Tasks, IJCV 2024), at most the
    actual ones; Wilson's limits with the t quantile of `_degrees_of_freedom`. A figure's limits depend on no other
    figure of the call. One whose trials all end the same has no variance: its intraclass correlation is taken to be
    that of `pooled`, the trials of all people (one figure, or one for each), and 1 if these have no variance either.

    Raises ValueError on a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    rate_F = divide(counts.error_F, counts.trial_F)
    influence_FI, identities_F = _influences(counts, rate_F)
    variance_F = _variance(influence_FI, identities_F)
    effective_F = np.where(
        variance_F > 0,
        np.minimum(divide(rate_F * (1 - rate_F), np.where(variance_F > 0, variance_F, 1)), counts.trial_F),
        counts.trial_F / (1 + (np.maximum(_cluster_sizes(counts), 1) - 1) * _intraclass_correlation(pooled)),
    )
    dof_F = _degrees_of_freedom(counts.trial_FI, influence_FI, identities_F)
    limits = wilson_limits(rate_F, effective_F, _t_quantiles(dof_F, identities_F, level))
    return RateIntervals(rate_F, *limits, identities_F, effective_F, dof_F, influence_FI, level)


def _t_quantiles(dof_F: np.ndarray, identities_F: np.ndarray, level: float) -> np.ndarray:
    """Returns the two-sided t quantiles, NaN with trials of fewer than two identities."""
    from scipy.special import stdtrit

    return np.where(identities_F >= 2, stdtrit(dof_F, 0.5 + level / 2), np.nan)


def wilson_limits(rate_F: np.ndarray, trial_F: np.ndarray, quantile_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns Wilson's score limits of rates of independent trials (Wilson, JASA 1927); NaN without trials."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shrinkage_F = quantile_F**2 / trial_F
        center_F = (rate_F + shrinkage_F / 2) / (1 + shrinkage_F)
        half_F = np.sqrt(shrinkage_F * rate_F * (1 - rate_F) + shrinkage_F**2 / 4) / (1 + shrinkage_F)
    return np.clip(center_F - half_F, 0, 1), np.clip(center_F + half_F, 0, 1)


def _degrees_of_freedom(trial_FI: np.ndarray, influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    """Returns the degrees of freedom of the variance over identities, [F], at least 1: the smaller of two numbers.

    Kish's effective number of identities less one, (sum_i N_i)^2 / sum_i N_i^2 - 1, is small if a few identities have
    most trials. Satterthwaite's from the observed influences u_i, 2 (sum u^2)^2 / (sum u^4 - (sum u^2)^2 / I), equal to
    I if they are normal, is small if a few identities have most errors.
    """
    kish_F = divide(trial_FI.sum(axis=1) ** 2, (trial_FI**2).sum(axis=1)) - 1
    return np.maximum(np.fmin(kish_F, satterthwaite_dof(influence_FI, identities_F)), 1)


def satterthwaite_dof(influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    """Returns Satterthwaite's degrees of freedom of the sum of squared influences, [F]; infinite without spread."""
    square_F = (influence_FI**2).sum(axis=1) ** 2
    spread_F = (influence_FI**4).sum(axis=1) - square_F / np.maximum(identities_F, 1)
    return np.where(spread_F > 0, divide(2 * square_F, spread_F), np.inf)


def _variance(influence_FI: np.ndarray, identities_F: np.ndarray) -> np.ndarray:
    return (1 - 1 / np.maximum(identities_F, 2)) * (influence_FI**2).sum(axis=1)


def _influences(counts: ClusteredCounts, rate_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the jackknife influences, [F,I], 0 with trials of fewer than two identities, whose number is also given.

    Leaving out identity i changes the rate by minus its influence.
    """
    identities_F = (counts.trial_FI > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        left_FI = counts.trial_F[:, None] - counts.trial_FI
        influence_FI = np.where(counts.trial_FI > 0, (counts.error_FI - rate_F[:, None] * counts.trial_FI) / left_FI, 0)
    influence_FI[(identities_F < 2) | ~np.isfinite(influence_FI).all(axis=1)] = 0
    return influence_FI, identities_F


def _cluster_sizes(counts: ClusteredCounts) -> np.ndarray:
    """Returns the size of the cluster (identity) of an average trial, [F]."""
    return divide((counts.trial_FI**2).sum(axis=1), counts.trial_FI.sum(axis=1))


def _intraclass_correlation(counts: ClusteredCounts | None) -> np.ndarray:
    """Returns the correlation of the trials of one identity, [F]: 1 if they all end the same, or without variance."""
    if counts is None:
        return np.ones(1)
    rate_F, cluster_F = divide(counts.error_F, counts.trial_F), _cluster_sizes(counts)
    variance_F = _variance(*_influences(counts, rate_F))
    effective_F = np.minimum(divide(rate_F * (1 - rate_F), variance_F), counts.trial_F)
    correlation_F = divide(divide(counts.trial_F, effective_F) - 1, cluster_F - 1)
    return np.where((variance_F > 0) & (cluster_F > 1), np.clip(correlation_F, 0, 1), 1.0)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient without warnings: a division by zero gives infinity, or NaN for 0 / 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator


# Measured coverage of intervals, 95% but for kinds that name another level: kind (`KINDS` in
# benchmarks/interval_coverage.py) -> identities per group -> mean over the simulated worlds and the lowest of them.
# Made by `python benchmarks/interval_coverage.py --draws 300 --replicates 100 --seed 0`; docs/auditing.md has the same
# table.
MEASURED_COVERAGE = MappingProxyType(
    {
        "search": {5: (0.9583, 0.91), 8: (0.9556, 0.92), 10: (0.9517, 0.93), 15: (0.9422, 0.9233), 30: (0.955, 0.9433)},
        "search_difference": {
            5: (0.9856, 0.96),
            8: (0.9772, 0.9633),
            10: (0.97, 0.95),
            15: (0.9683, 0.9433),
            30: (0.9617, 0.9467),
        },
        "paired_difference": {
            5: (0.9817, 0.9633),
            8: (0.975, 0.9567),
            10: (0.9694, 0.9433),
            15: (0.9678, 0.9433),
            30: (0.9683, 0.9433),
        },
        "search_difference_995": {
            5: (1.0, 1.0),
            8: (1.0, 1.0),
            10: (1.0, 1.0),
            15: (0.9989, 0.9967),
            30: (0.9989, 0.9967),
        },
        "paired_difference_995": {
            5: (1.0, 1.0),
            8: (0.9983, 0.9933),
            10: (0.9978, 0.9933),
            15: (0.9983, 0.9933),
            30: (0.9972, 0.99),
        },
        "gap_four": {5: (1.0, 1.0), 8: (0.9911, 0.98), 10: (0.9867, 0.9767), 15: (0.9794, 0.95), 30: (0.9728, 0.96)},
        "gini_four": {5: (1.0, 1.0), 8: (1.0, 1.0), 10: (1.0, 1.0), 15: (0.9994, 0.9967), 30: (0.9989, 0.9967)},
        "search_percentile": {
            5: (0.7383, 0.6733),
            8: (0.8272, 0.77),
            10: (0.8261, 0.75),
            15: (0.8478, 0.81),
            30: (0.8844, 0.83),
        },
        "pair": {5: (0.9642, 0.9367), 8: (0.9425, 0.92), 10: (0.9508, 0.9), 15: (0.9492, 0.93), 30: (0.955, 0.9367)},
        "pair_across": {
            5: (0.9525, 0.9167),
            8: (0.9558, 0.9333),
            10: (0.9433, 0.93),
            15: (0.9483, 0.9233),
            30: (0.95, 0.94),
        },
        "pair_difference": {
            5: (0.985, 0.96),
            8: (0.9708, 0.9367),
            10: (0.9692, 0.94),
            15: (0.9708, 0.9533),
            30: (0.97, 0.9533),
        },
        "pair_difference_995": {
            5: (1.0, 1.0),
            8: (0.9992, 0.9967),
            10: (0.9958, 0.9867),
            15: (0.9975, 0.9933),
            30: (0.9958, 0.9867),
        },
        "pair_percentile": {
            5: (0.8117, 0.6833),
            8: (0.8367, 0.76),
            10: (0.8817, 0.7933),
            15: (0.8933, 0.8367),
            30: (0.9058, 0.8767),
        },
    }
)


@dataclass(frozen=True)
class MeasuredCoverage:
    """Fraction of 95% intervals that contain the true rate: mean over the simulated worlds, and the lowest of them."""

    mean: float
    lowest: float


def measured_coverage(kind: str, identities: int) -> MeasuredCoverage | None:
    """Returns the coverage of an interval of a kind for a number of identities in the (smaller) group.

    Interpolated linearly in 1 / sqrt(identities), constant beyond the largest measured number; None below the
    smallest. Raises ValueError on an unknown kind.
    """
    if kind not in MEASURED_COVERAGE:
        raise ValueError(f"coverage of {kind!r} was not measured: choose one of {', '.join(MEASURED_COVERAGE)}")
    row = MEASURED_COVERAGE[kind]
    counts = sorted(row, reverse=True)
    if identities < counts[-1]:
        return None
    position = 1 / np.sqrt(np.array([*counts, max(identities, 1)], dtype=np.float64))
    values = np.array([row[n] for n in counts]).T
    return MeasuredCoverage(*(float(np.interp(position[-1], position[:-1], value)) for value in values))
