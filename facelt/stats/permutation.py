"""Permutation tests over identities, contrasts of two groups or two models, and Holm's adjustment of p-values.

Groups are compared by permuting the groups of identities, two models by swapping the models of identities.

P permutations, I identities, G groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from facelt.stats import disparity
from facelt.stats.groups import GroupTable
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.stats.resampling import iterate_row_slices

# Statistics within this distance are ties: their sums may round differently.
_TIE = 1e-12


@dataclass(frozen=True)
class PermutationResult:
    """Observed statistic and its p-value under the null hypothesis of equal groups."""

    statistic: float
    p: float
    permutations: int


def permuted_groups(group_I: np.ndarray, *, permutations: int, seed: int) -> np.ndarray:
    """Returns random permutations of the identities' groups, int64 [P,I]. Raises ValueError without permutations."""
    if permutations < 1:
        raise ValueError(f"permutations {permutations} must be positive")
    group_PI = np.tile(np.asarray(group_I, dtype=np.int64), (permutations, 1))
    return np.random.default_rng(seed).permuted(group_PI, axis=1)


def permutation_test(
    error_I: np.ndarray,
    trial_I: np.ndarray,
    group_I: np.ndarray,
    *,
    permutations: int,
    seed: int,
    figure: Callable[[np.ndarray], np.ndarray] = disparity.gap,
) -> PermutationResult | None:
    """Tests a disparity (by default the gap) of the groups' rates of searches or mated pairs.

    `group_I` is the group of each identity, below 0 to leave it out; identities without trials are left out. None if
    fewer than two groups remain or the disparity is undefined. The test is exact if, were the groups equal, every
    identity could as well have been in another group (Fisher's permutation test; identities are permuted because images
    of one person are not exchangeable).
    """
    kept_I = (trial_I > 0) & (group_I >= 0)
    names, group_K = np.unique(group_I[kept_I], return_inverse=True)
    if len(names) < 2:
        return None
    error_K, trial_K = error_I[kept_I].astype(np.float64), trial_I[kept_I].astype(np.float64)

    def rates(group_PK: np.ndarray) -> np.ndarray:
        member_GPK = group_PK == np.arange(len(names))[:, None, None]
        return ((member_GPK @ error_K) / (member_GPK @ trial_K)).T

    return _test(rates, group_K, permutations, seed, figure)


def nonmated_permutation_test(
    error_II: np.ndarray,
    trial_II: np.ndarray,
    group_I: np.ndarray,
    *,
    permutations: int,
    seed: int,
    figure: Callable[[np.ndarray], np.ndarray] = disparity.gap,
) -> PermutationResult | None:
    """Tests a disparity of non-mated pairs within groups, from symmetric counts by both identities, [I,I].

    As `permutation_test`; groups of one identity have no such pair and are left out. A permutation that leaves a group
    without a pair counts as at least as extreme.
    """
    same_II = group_I[:, None] == group_I
    kept_I = (np.where(same_II, trial_II, 0).sum(axis=1) > 0) & (group_I >= 0)
    names, group_K = np.unique(group_I[kept_I], return_inverse=True)
    if len(names) < 2:
        return None
    counts = [count_II[np.ix_(kept_I, kept_I)].astype(np.float64) for count_II in (error_II, trial_II)]

    def rates(group_PK: np.ndarray) -> np.ndarray:
        rate_PG = np.empty((len(group_PK), len(names)))
        for g in range(len(names)):
            member_PK = (group_PK == g).astype(np.float64)
            error_P, trial_P = (np.einsum("pk,pk->p", member_PK @ count_KK, member_PK) for count_KK in counts)
            with np.errstate(invalid="ignore"):
                rate_PG[:, g] = error_P / trial_P
        return rate_PG

    return _test(rates, group_K, permutations, seed, figure)


def paired_permutation_test(
    first_error_I: np.ndarray, second_error_I: np.ndarray, trial_I: np.ndarray, *, permutations: int, seed: int
) -> PermutationResult | None:
    """Tests the difference of two models' rates on the same searches by swapping the models of random identities.

    The statistic is |rate of the first - rate of the second|; None without trials.
    """
    if permutations < 1:
        raise ValueError(f"permutations {permutations} must be positive")
    if not trial_I.sum() > 0:
        return None
    difference_I = (np.asarray(first_error_I, dtype=np.float64) - second_error_I) / trial_I.sum()
    random = np.random.default_rng(seed)
    sum_P = np.concatenate(
        [
            random.choice([-1.0, 1.0], (len(range(permutations)[part]), len(difference_I))) @ difference_I
            for part in iterate_row_slices(permutations, len(difference_I))
        ]
    )
    return _compare_with_null(float(abs(difference_I.sum())), np.abs(sum_P))


@dataclass(frozen=True)
class PairedDifference:
    """Rate of a model minus that of the reference on the same searches; limits NaN with fewer than two identities.

    Rates are NaN and `p`, of the paired permutation test, None without searches.
    """

    reference_rate: float
    rate: float
    difference: float
    low: float
    high: float
    identities: int
    p: float | None


def paired_differences(
    reference_GI: np.ndarray, event_GI: np.ndarray, trial_GI: np.ndarray, *, level: float, permutations: int, seed: int
) -> list[PairedDifference]:
    """Returns the difference of two models' rates in each group, from their events in the same trials, [G,I] each.

    The rates of both models and all groups come from one call of `rate_intervals`; its joint limits account for the
    correlation of the models over identities. Holm's adjustment is left to the caller, who knows all tests of a report.
    """
    groups = len(trial_GI)
    both_FI, trial_FI = np.concatenate([reference_GI, event_GI]), np.concatenate([trial_GI, trial_GI])
    intervals = rate_intervals(ClusteredCounts.by_identity(both_FI, trial_FI), level=level)
    differences = []
    for g in range(groups):
        low, high = intervals.difference(groups + g, g)
        test = paired_permutation_test(reference_GI[g], event_GI[g], trial_GI[g], permutations=permutations, seed=seed)
        reference_rate, rate = float(intervals.rate_F[g]), float(intervals.rate_F[groups + g])
        differences.append(
            PairedDifference(
                reference_rate,
                rate,
                rate - reference_rate,
                low,
                high,
                int(intervals.identities_F[g]),
                None if test is None else test.p,
            )
        )
    return differences


def _test(
    rates: Callable, group_K: np.ndarray, permutations: int, seed: int, figure: Callable
) -> PermutationResult | None:
    observed = float(figure(rates(group_K[None])[0]))
    if np.isnan(observed):
        return None
    group_PK = permuted_groups(group_K, permutations=permutations, seed=seed)
    value_P = np.concatenate([figure(rates(group_PK[part])) for part in iterate_row_slices(permutations, len(group_K))])
    return _compare_with_null(observed, value_P)


def _compare_with_null(observed: float, value_P: np.ndarray) -> PermutationResult:
    as_extreme = int(np.count_nonzero(~(value_P < observed - _TIE)))
    # The observed order counts as one of the permutations (Phipson and Smyth 2010), so that no p-value is 0.
    p = (as_extreme + 1) / (len(value_P) + 1)
    return PermutationResult(observed, p, len(value_P))


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


def is_decided(low: float, high: float, adjusted_p: float | None, *, level: float) -> bool:
    """Returns True if the interval of a difference excludes 0 and its adjusted p-value is below 1 - level."""
    return (low > 0 or high < 0) and adjusted_p is not None and adjusted_p < 1 - level


# Tests a difference, given the group of each identity, below 0 to leave it out.
DifferenceTest = Callable[[np.ndarray], PermutationResult | None]


@dataclass(frozen=True)
class Contrast:
    """Comparison of two groups of a table; `first` has the higher rate, or the rates are equal.

    `ratio` and its limits are None if unknown: `ratio` and its upper limit if `second` has no event, all three if
    neither has. `p` is that of the permutation test and `adjusted_p` Holm's over all tests of the report; None if
    identities belong to several groups, because groups cannot be permuted over identities then.
    """

    metric: str
    by: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p: float | None
    adjusted_p: float | None = None


def pairwise_contrasts(table: GroupTable, test: DifferenceTest) -> list[Contrast]:
    """Returns the contrasts of every two large rows of a table, largest difference first.

    `test` is `permutation_test` or `nonmated_permutation_test` with the counts of this table.
    """
    group_I = _identity_rows(table)
    contrasts = []
    for pair in combinations(table.large(), 2):
        first, second = sorted(pair, key=lambda f: -table.rows[f].rate)
        higher, lower = table.rows[first], table.rows[second]
        result = None if group_I is None else test(np.where(np.isin(group_I, pair), group_I, -1))
        low, high = map(_finite, table.intervals.difference(first, second))
        ratio_low, ratio_high = map(_finite, table.intervals.ratio(first, second))
        contrasts.append(
            Contrast(
                metric=table.metric,
                by=table.by,
                first=higher.group,
                second=lower.group,
                difference=higher.rate - lower.rate,
                low=low,
                high=high,
                ratio=higher.rate / lower.rate if lower.rate else None,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                p=None if result is None else result.p,
            )
        )
    return sorted(contrasts, key=lambda contrast: -contrast.difference)


def holm_adjust_contrasts(contrasts: list[Contrast]) -> list[Contrast]:
    """Returns the contrasts of a whole report, in the same order, with p-values adjusted over all their tests."""
    values = holm_adjust([contrast.p for contrast in contrasts])
    return [replace(contrast, adjusted_p=value) for contrast, value in zip(contrasts, values, strict=True)]


def _identity_rows(table: GroupTable) -> np.ndarray | None:
    """Returns the row of each identity in a table, int64 [I], below 0 for none; None if one is in several rows."""
    tested_FI = table.counts.trial_FI > 0
    if (tested_FI.sum(axis=0) > 1).any():
        return None
    return np.where(tested_FI.any(axis=0), tested_FI.argmax(axis=0), -1)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
