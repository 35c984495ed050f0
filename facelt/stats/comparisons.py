"""Comparisons of two groups or two models, and one rule for all differences of a report: Holm's adjusted p-values.

A difference is decided at a level if its p-value, adjusted over all differences of the report, is below 1 - level, and
so if and only if its adjusted limits exclude 0: the p-value is that of the limits (`facelt.stats.differences`).

G groups, I identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

from facelt.stats.differences import RateDifferences
from facelt.stats.groups import GroupTable
from facelt.stats.intervals import ClusteredCounts, rate_intervals


def holm_adjust(p: Sequence[float | None]) -> list[float | None]:
    """Returns Holm-Bonferroni adjusted p-values; None is not a test and stays None.

    max_{j <= k} min(1, (m - j + 1) p_(j)) for the k-th smallest of m (Holm, A Simple Sequentially Rejective Multiple
    Test Procedure, 1979).
    """
    order = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted


def holm_factors(p: Sequence[float | None], *, level: float) -> list[int | None]:
    """Returns the number that Holm's method multiplies each p-value by at this level, None for no test.

    The k-th smallest of m is multiplied by m - k + 1, and all from the first that is not below 1 - level then by the
    same number, so that p times the number is below 1 - level if and only if the adjusted p-value is.
    """
    order = sorted((value, index) for index, value in enumerate(p) if value is not None)
    factors: list[int | None] = [None] * len(p)
    left = len(order)
    for value, index in order:
        factors[index] = left
        if left * value < 1 - level:
            left -= 1
    return factors


@dataclass(frozen=True)
class Verdict:
    """Result of one test among all differences of a report; p-values are None without trials.

    `adjusted_low` and `adjusted_high` are the limits at the level that Holm's method leaves to this test: they exclude
    0 if and only if it is `decided`, that is `adjusted_p` is below 1 - level. `smallest_p` is the smallest adjusted
    p-value that these people can reach: if it is not below 1 - level, no difference of their rates is decided.
    """

    p: float | None
    adjusted_p: float | None
    adjusted_low: float | None
    adjusted_high: float | None
    smallest_p: float | None
    decided: bool


def decide(pairs: Sequence[RateDifferences], *, level: float) -> list[Verdict]:
    """Returns the verdict of each single difference, in the same order, adjusted over all of them."""
    if not pairs:
        return []
    differences = RateDifferences.concatenate(pairs)
    p = [None if np.isnan(value) else float(value) for value in differences.p_values()]
    factors = holm_factors(p, level=level)
    factor_K = np.array([factor or 1 for factor in factors])
    limits = zip(*differences.limits(1 - (1 - level) / factor_K), strict=True)
    smallest_K = np.minimum(factor_K * differences.smallest_p(), 1)
    return [
        Verdict(value, adjusted, _finite(low), _finite(high), float(smallest), adjusted < 1 - level)
        if value is not None
        else Verdict(None, None, None, None, None, False)
        for value, adjusted, (low, high), smallest in zip(p, holm_adjust(p), limits, smallest_K, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """Rate of a model minus that of the reference on the same searches; limits NaN with fewer than two identities.

    Rates are NaN without searches. `pair` is the single difference, for `decide`.
    """

    reference_rate: float
    rate: float
    difference: float
    low: float
    high: float
    identities: int
    pair: RateDifferences


def paired_differences(
    reference_GI: np.ndarray, event_GI: np.ndarray, trial_GI: np.ndarray, *, level: float, whole: int | None = None
) -> list[PairedDifference]:
    """Returns the difference of two models' rates in each group, from their events in the same trials, [G,I] each.

    `whole` is the group of all trials; without it, the other groups together are all trials. The limits account for
    the correlation of the models over identities.
    """
    groups = len(trial_GI)
    whole_counts = [
        np.repeat(count_GI.sum(axis=0, keepdims=True) if whole is None else count_GI[[whole]], groups, axis=0)
        for count_GI in (reference_GI, event_GI, trial_GI, trial_GI)
    ]
    counts, pooled = (
        ClusteredCounts.by_identity(np.concatenate(counts[:2]), np.concatenate(counts[2:]))
        for counts in ([reference_GI, event_GI, trial_GI, trial_GI], whole_counts)
    )
    intervals = rate_intervals(counts, level=level, pooled=pooled)
    differences = RateDifferences.between(intervals, range(groups, 2 * groups), range(groups))
    return [
        PairedDifference(
            reference_rate=float(intervals.rate_F[g]),
            rate=float(intervals.rate_F[groups + g]),
            difference=float(differences.difference_K[g]),
            low=float(low),
            high=float(high),
            identities=int(intervals.identities_F[g]),
            pair=differences.only([g]),
        )
        for g, (low, high) in enumerate(zip(*differences.limits(level), strict=True))
    ]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Comparison of two groups of a table; `first` has the higher rate, or the rates are equal.

    `ratio` and its limits are None if unknown: `ratio` and its upper limit if `second` has no event, all three if
    neither has. `identities` counts those of both groups, one in both once. `pair` is the single difference, for
    `decide`.
    """

    metric: str
    by: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    identities: int
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    pair: RateDifferences


def pairwise_contrasts(table: GroupTable) -> list[Contrast]:
    """Returns the contrasts of every two large rows of a table, largest difference first."""
    order = [sorted(pair, key=lambda f: -table.rows[f].rate) for pair in combinations(table.large(), 2)]
    if not order:
        return []
    differences = RateDifferences.between(table.intervals, *zip(*order, strict=True))
    limits = (*differences.limits(table.level), *differences.ratio_limits(table.level))
    contrasts = [
        Contrast(
            metric=table.metric,
            by=table.by,
            first=table.rows[first].group,
            second=table.rows[second].group,
            identities=int((table.counts.trial_FI[[first, second]] > 0).any(axis=0).sum()),
            difference=table.rows[first].rate - table.rows[second].rate,
            low=_finite(low),
            high=_finite(high),
            ratio=table.rows[first].rate / table.rows[second].rate if table.rows[second].rate else None,
            ratio_low=_finite(ratio_low),
            ratio_high=_finite(ratio_high),
            pair=differences.only([k]),
        )
        for k, ((first, second), low, high, ratio_low, ratio_high) in enumerate(zip(order, *limits, strict=True))
    ]
    return sorted(contrasts, key=lambda contrast: -contrast.difference)


def comparison_values(comparison: PairedDifference | Contrast, verdict: Verdict) -> dict[str, Any]:
    """Returns the values that a report has of a comparison and its verdict."""
    values = {field.name: getattr(comparison, field.name) for field in fields(comparison) if field.name != "pair"}
    return values | {field.name: getattr(verdict, field.name) for field in fields(verdict)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
