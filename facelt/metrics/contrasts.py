"""Every two groups of a table compared: difference and ratio with limits, and whether chance explains the difference.

I identities.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from facelt.metrics.group_tables import GroupTable
from facelt.metrics.permutation import Chance, holm

# A table, and a test of a difference: given the group of each identity, below 0 where it takes no part.
Test = Callable[[np.ndarray], Chance | None]


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


def contrasts(table: GroupTable, group_I: np.ndarray | None, test: Test) -> list[Contrast]:
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


def row_of_identities(table: GroupTable) -> np.ndarray | None:
    """The row of each identity in a table by group, int64 [I], below 0 for none; None where one is in several."""
    tested_FI = table.touched.trial_FI > 0
    if (tested_FI.sum(axis=0) > 1).any():
        return None
    return np.where(tested_FI.any(axis=0), tested_FI.argmax(axis=0), -1)


def adjusted(found: list[Contrast]) -> list[Contrast]:
    """The contrasts of a whole report with Holm's adjustment over all their tests, in the same order."""
    values = holm([one.p for one in found])
    return [replace(one, adjusted_p=value) for one, value in zip(found, values, strict=True)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
