"""Could a gap be chance: tests by giving identities other groups, or each identity's trials the other model.

P permutations, I identities, G groups.

Every two groups of a table compared: difference and ratio with limits, and whether chance explains the difference.

I identities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from facelt.stats import disparity
from facelt.stats.groups import GroupTable
from facelt.stats.resampling import _row_blocks

# A figure that ties with the one seen is as extreme, whatever the rounding of its sums.
_TIE = 1e-12


@dataclass(frozen=True)
class PermutationResult:
    """A figure and what chance makes of it: its p value, and the median and the 95% quantile if groups were alike."""

    value: float
    p: float
    median: float
    high: float
    permutations: int


def permuted_groups(group_I: np.ndarray, *, permutations: int, seed: int) -> np.ndarray:
    """The identities' groups in other orders, int64 [P,I]: every group keeps its number of identities."""
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
    """The gap, or another figure over the groups' rates, of searches or mated pairs against chance.

    `group_I` is the group of each identity, below 0 where it takes no part, as one without trials does not. None where
    fewer than two groups are left: there is nothing to compare. Exact if, were groups alike, every identity could as
    well have been in another (Fisher's permutation test, over identities because images of one are not exchangeable).
    """
    kept_I = (trial_I > 0) & (group_I >= 0)
    names, group_K = np.unique(group_I[kept_I], return_inverse=True)
    if len(names) < 2:
        return None
    error_K, trial_K = error_I[kept_I].astype(np.float64), trial_I[kept_I].astype(np.float64)

    def rates(group_PK: np.ndarray) -> np.ndarray:
        member_GPK = group_PK == np.arange(len(names))[:, None, None]
        return ((member_GPK @ error_K) / (member_GPK @ trial_K)).T

    return _chance(rates, group_K, permutations, seed, figure)


def nonmated_permutation_test(
    error_II: np.ndarray,
    trial_II: np.ndarray,
    group_I: np.ndarray,
    *,
    permutations: int,
    seed: int,
    figure: Callable[[np.ndarray], np.ndarray] = disparity.gap,
) -> PermutationResult | None:
    """As `gap_chance`, of non-mated pairs within each group: symmetric counts by the identities of both sides, [I,I].

    Groups of one identity have no pair within them and take no part. A permutation that leaves a group without a pair
    says nothing against chance and counts as at least as extreme.
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

    return _chance(rates, group_K, permutations, seed, figure)


def paired_permutation_test(
    first_error_I: np.ndarray, second_error_I: np.ndarray, trial_I: np.ndarray, *, permutations: int, seed: int
) -> PermutationResult | None:
    """How far two models' rates on the same searches lie apart, against chance: identities swap models at random.

    The figure is |rate of the first - rate of the second|; None without trials.
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
            for part in _row_blocks(permutations, len(difference_I))
        ]
    )
    return _against(float(abs(difference_I.sum())), np.abs(sum_P))


def holm_adjust(p: Sequence[float | None]) -> list[float | None]:
    """p values adjusted so that any below 0.05 is, with 95% confidence, no accident of testing so often.

    max_{j <= k} min(1, (m - j + 1) p_(j)) for the k-th smallest of m (Holm, A Simple Sequentially Rejective Multiple
    Test Procedure, 1979). None is no test and stays so.
    """
    order = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[place] = largest
    return adjusted


def _chance(
    rates: Callable, group_K: np.ndarray, permutations: int, seed: int, figure: Callable
) -> PermutationResult | None:
    seen = float(figure(rates(group_K[None])[0]))
    if np.isnan(seen):
        return None
    group_PK = permuted_groups(group_K, permutations=permutations, seed=seed)
    value_P = np.concatenate([figure(rates(group_PK[part])) for part in _row_blocks(permutations, len(group_K))])
    return _against(seen, value_P)


def _against(seen: float, value_P: np.ndarray) -> PermutationResult:
    as_extreme = int(np.count_nonzero(~(value_P < seen - _TIE)))
    known_P = value_P[~np.isnan(value_P)]
    median, high = np.quantile(known_P, [0.5, 0.95]) if len(known_P) else (np.nan, np.nan)
    # The order that was seen is one of the orders (Phipson and Smyth 2010): no p value is 0.
    return PermutationResult(seen, (as_extreme + 1) / (len(value_P) + 1), float(median), float(high), len(value_P))


# A table, and a test of a difference: given the group of each identity, below 0 where it takes no part.
DifferenceTest = Callable[[np.ndarray], PermutationResult | None]


@dataclass(frozen=True)
class Contrast:
    """`first` has the higher rate of two groups of a table, or they are equal.

    `ratio` and its limits are None where they are not known: an upper limit where `second` has no event, all where
    neither has. `p` is that of the permutation test, `adjusted_p` Holm's over the tests it was reported with; None
    where identities are in several groups, so that no other order of groups is as likely.
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


def pairwise_contrasts(table: GroupTable, group_I: np.ndarray | None, test: DifferenceTest) -> list[Contrast]:
    """The large rows of a table two by two, largest difference first.

    Args:
        table: rates by group.
        group_I: the row of each identity in the table, below 0 for none (`row_of_identities`); None where identities
            are in several.
        test: `gap_chance` or `pair_gap_chance` with the counts of this table.
    """
    found = []
    for pair in combinations(table.large(), 2):
        first, second = sorted(pair, key=lambda f: -table.rows[f].rate)
        above, below = table.rows[first], table.rows[second]
        chance = None
        if group_I is not None:
            chance = test(np.where(np.isin(group_I, pair), group_I, -1))
        low, high = map(_finite, table.intervals.difference(first, second))
        ratio_low, ratio_high = map(_finite, table.intervals.ratio(first, second))
        found.append(
            Contrast(
                metric=table.metric,
                by=table.by,
                first=above.group,
                second=below.group,
                difference=above.rate - below.rate,
                low=low,
                high=high,
                ratio=above.rate / below.rate if below.rate else None,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                p=None if chance is None else chance.p,
            )
        )
    return sorted(found, key=lambda one: -one.difference)


def identity_rows(table: GroupTable) -> np.ndarray | None:
    """The row of each identity in a table by group, int64 [I], below 0 for none; None where one is in several."""
    tested_FI = table.counts.trial_FI > 0
    if (tested_FI.sum(axis=0) > 1).any():
        return None
    return np.where(tested_FI.any(axis=0), tested_FI.argmax(axis=0), -1)


def holm_adjust_contrasts(found: list[Contrast]) -> list[Contrast]:
    """The contrasts of a whole report with Holm's adjustment over all their tests, in the same order."""
    values = holm_adjust([one.p for one in found])
    return [replace(one, adjusted_p=value) for one, value in zip(found, values, strict=True)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
