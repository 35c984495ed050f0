"""Groups of images by attribute columns, error counts of comparisons by group, and tables of rates by group.

Counts are kept by units: the images of one identity that agree in every column. A pair matches at a threshold if its
score is at or above it; a mated pair that does not match is a false non-match, a non-mated pair that matches a false
match (ISO/IEC 19795-1).

N images, M pairs of a block, T thresholds, U units, G groups, F figures (groups, or pairs of groups), I identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from facelt.errors import UserError
from facelt.stats.disparity import GroupErrors
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame

# Value of a missing attribute: such images form a group, none is dropped.
UNKNOWN = "(unknown)"


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups by the columns `by`: `names` has one value per column for each group, `group_U` the group of each unit."""

    by: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    group_U: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def membership(self) -> np.ndarray:
        """Returns the 0/1 membership of units in groups, float64 [U,G]; counts by unit times it are counts by group."""
        return (self.group_U[:, None] == np.arange(len(self))).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Units:
    """Units: the images of one identity that agree in every column. Counts of units add up to those of any group.

    `unit_N` is the unit of each image, `identity_U` the identity of each unit (positions in `identities`), `values` the
    column values by unit. `fixed_U` marks units that stand for a collection, such as all distractors, not for a person:
    intervals do not resample them.
    """

    unit_N: np.ndarray
    identity_U: np.ndarray
    identities: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    fixed_U: np.ndarray

    @classmethod
    def from_columns(
        cls,
        identity_N: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        fixed_N: np.ndarray | None = None,
    ) -> "Units":
        """Returns the units of N images; an empty value becomes `UNKNOWN`. Raises ValueError on different lengths."""
        table = {"identity": np.asarray(identity_N, dtype=str)}
        for name, value_N in columns.items():
            value_N = np.asarray(value_N, dtype=str)
            if len(value_N) != len(table["identity"]):
                raise ValueError(f"column {name!r} has {len(value_N)} values for {len(table['identity'])} images")
            table[f"column {name}"] = np.where(value_N == "", UNKNOWN, value_N)
        levels, codes = zip(*(np.unique(value_N, return_inverse=True) for value_N in table.values()), strict=True)
        code_UA, unit_N = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
        values = {
            name: tuple(level[code_UA[:, a]].tolist())
            for a, (name, level) in enumerate(zip(columns, levels[1:], strict=True), start=1)
        }
        fixed_U = np.zeros(len(code_UA), dtype=bool)
        if fixed_N is not None:
            fixed_U[unit_N[np.asarray(fixed_N, dtype=bool)]] = True
        return cls(unit_N.reshape(-1), code_UA[:, 0], tuple(levels[0].tolist()), values, fixed_U)

    def __len__(self) -> int:
        return len(self.identity_U)

    def grouping(self, by: Sequence[str]) -> Grouping:
        """Returns the groups of one column, or of the intersection of several, sorted by name.

        Raises UserError on an unknown column; the message lists the known ones.
        """
        missing = [name for name in by if name not in self.values]
        if missing or not by:
            columns = ", ".join(self.values) or "none"
            raise UserError(f"no column {', '.join(map(repr, missing)) or 'named'} to group by: columns are {columns}")
        names = list(zip(*(self.values[name] for name in by), strict=True))
        order = sorted(set(names))
        index = {name: g for g, name in enumerate(order)}
        return Grouping(tuple(by), tuple(order), np.array([index[name] for name in names], dtype=np.int64))

    def sum_by_identity(self, count_FU: np.ndarray) -> np.ndarray:
        """Sums counts by unit, [F,U], to counts by identity, [F,I]; fixed units are left out."""
        count_FU = np.atleast_2d(count_FU).astype(np.float64)
        count_IF = np.zeros((len(self.identities), len(count_FU)))
        np.add.at(count_IF, self.identity_U[~self.fixed_U], count_FU[:, ~self.fixed_U].T)
        return count_IF.T

    def sum_by_group(self, count_U: np.ndarray, grouping: Grouping) -> np.ndarray:
        """Sums counts by unit to counts by group and identity, [G,I]; fixed units are left out."""
        count_GU = np.where(grouping.group_U == np.arange(len(grouping))[:, None], count_U, 0)
        return self.sum_by_identity(count_GU)


# Non-mated counts are dense: 8 bytes per pair of units, for the trials and for the errors at each threshold.
_MAX_CELLS = 1 << 27


@dataclass(frozen=True, eq=False)
class UnitPairCounts:
    """Errors and trials of mated or of non-mated pairs by the units of both sides, symmetric [U,U].

    Pairs are unordered: one of two units is counted in both of their cells, one within a unit twice in its cell, so
    that the sum over all cells is twice the number of pairs. Mated counts are sparse.
    """

    error_UU: np.ndarray
    trial_UU: np.ndarray
    mated: bool

    def clustered_counts(self, units: Units, grouping: Grouping) -> ClusteredCounts:
        """Returns the counts of each of `group_pairs(grouping)`."""
        error_F, error_FI = self._sum_by_identity(self.error_UU, units, grouping)
        trial_F, trial_FI = self._sum_by_identity(self.trial_UU, units, grouping)
        return ClusteredCounts(error_F, trial_F, error_FI, trial_FI)

    def _sum_by_identity(self, count_UU: np.ndarray, units: Units, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
        member_UG = grouping.membership()
        count_UG = count_UU @ member_UG
        sum_GG = member_UG.T @ count_UG
        pairs = group_pairs(grouping)
        count_FU = np.zeros((len(pairs), len(units)))
        for f, (a, b) in enumerate(pairs):
            count_FU[f] += member_UG[:, a] * count_UG[:, b]
            if a != b:
                count_FU[f] += member_UG[:, b] * count_UG[:, a]
        # Both sides of a mated pair belong to one identity, which is counted once.
        count_FI = units.sum_by_identity(count_FU) / (2 if self.mated else 1)
        return np.array([sum_GG[a, b] / (2 if a == b else 1) for a, b in pairs]), count_FI


def group_pairs(grouping: Grouping) -> tuple[tuple[int, int], ...]:
    """Returns all pairs of groups a <= b, as indices, in the order of pair figures."""
    return tuple(combinations_with_replacement(range(len(grouping)), 2))


class PairCounter:
    """Accumulates blocks of pairs, of which there may be 1e8, into counts by unit at fixed thresholds.

    Args:
        units: the units of the compared images.
        thresholds: a pair with at least that score matches.

    Raises:
        UserError: too many units for a dense table of their pairs.
    """

    def __init__(self, units: Units, thresholds: Sequence[float]) -> None:
        self.units = units
        self.threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
        size = len(units)
        if (len(self.threshold_T) + 1) * size * size > _MAX_CELLS:
            most = int(np.sqrt(_MAX_CELLS / (len(self.threshold_T) + 1)))
            raise UserError(
                f"{size} combinations of identity and group are too many to compare with each other: at most {most} at "
                f"{len(self.threshold_T)} thresholds; group by fewer columns, or audit a sample of identities"
            )
        self._non_mated_trial_K = np.zeros(size * size, dtype=np.int64)
        self._non_mated_error_TK = np.zeros((len(self.threshold_T), size * size), dtype=np.int64)
        self._mated_trial = self._sparse(np.zeros(0, dtype=np.int64))
        self._mated_error_T = [self._mated_trial for _ in self.threshold_T]

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Adds a block of pairs, given once each in any order, as indices of the N images.

        Raises:
            UserError: a score that is NaN.
            ValueError: different lengths, or a `mated` flag that contradicts the identities.
        """
        score_M, mated_M = np.asarray(score_M), np.asarray(mated_M, dtype=bool)
        left_M, right_M = self.units.unit_N[left_M], self.units.unit_N[right_M]
        if not len(score_M) == len(mated_M) == len(left_M) == len(right_M):
            raise ValueError(f"{len(score_M)} scores, {len(mated_M)} labels, {len(left_M)} and {len(right_M)} images")
        if np.isnan(score_M).any():
            raise UserError(f"the score of pair {int(np.argmax(np.isnan(score_M)))} of a block is not a number")
        identity_U, fixed_U = self.units.identity_U, self.units.fixed_U
        wrong_M = (identity_U[left_M] == identity_U[right_M]) & ~fixed_U[left_M] != mated_M
        if wrong_M.any():
            first = int(np.argmax(wrong_M))
            ends = " and ".join(self.units.identities[identity_U[end_M[first]]] for end_M in (left_M, right_M))
            flag = "mated" if mated_M[first] else "non-mated"
            raise ValueError(f"pair {first} of a block, of {ends}, is flagged as {flag}")
        key_M = np.minimum(left_M, right_M) * len(self.units) + np.maximum(left_M, right_M)
        other_M = ~mated_M
        np.add.at(self._non_mated_trial_K, key_M[other_M], 1)
        self._mated_trial = self._mated_trial + self._sparse(key_M[mated_M])
        for t, threshold in enumerate(self.threshold_T):
            match_M = score_M >= threshold
            np.add.at(self._non_mated_error_TK[t], key_M[other_M & match_M], 1)
            self._mated_error_T[t] = self._mated_error_T[t] + self._sparse(key_M[mated_M & ~match_M])

    def non_mated(self, index: int) -> UnitPairCounts:
        """Returns false matches among non-mated pairs at the threshold of that index."""
        shape = len(self.units), len(self.units)
        counts = self._non_mated_error_TK[index].reshape(shape), self._non_mated_trial_K.reshape(shape)
        return UnitPairCounts(*(count_UU + count_UU.T for count_UU in counts), mated=False)

    def mated(self, index: int) -> UnitPairCounts:
        """Returns false non-matches among mated pairs at the threshold of that index."""
        counts = self._mated_error_T[index], self._mated_trial
        return UnitPairCounts(*(count_UU + count_UU.T for count_UU in counts), mated=True)

    def _sparse(self, key_M: np.ndarray):
        from scipy.sparse import csr_array

        size = len(self.units)
        ends = np.divmod(key_M, size)
        return csr_array((np.ones(len(key_M), dtype=np.int64), ends), shape=(size, size))


@dataclass(frozen=True)
class GroupRate:
    """Row of a table: a group, or two groups compared, with its rate of events among trials.

    `rate` is None without trials, `low` and `high` also with trials of fewer than two identities. `effective` is the
    effective number of trials. A `small` row has fewer identities than required: it is shown, but takes no part in
    disparities.
    """

    group: tuple[str, ...]
    rate: float | None
    low: float | None
    high: float | None
    events: float
    trials: float
    identities: int
    effective: float | None
    small: bool


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Rates of one metric by the columns `by`; `rows`, `intervals` and `counts` have the same order."""

    metric: str
    by: tuple[str, ...]
    level: float
    rows: tuple[GroupRate, ...]
    intervals: RateIntervals
    counts: ClusteredCounts

    def large(self) -> tuple[int, ...]:
        """Returns the positions of the rows that have a rate and are not small."""
        return tuple(f for f, row in enumerate(self.rows) if row.rate is not None and not row.small)

    def errors(self, kind: str) -> GroupErrors:
        """Returns the counts of the large rows as errors; `kind` is the name of one event."""
        large = [self.rows[f] for f in self.large()]
        # A group of one identity has no limits, so that its rate may be 1.
        upper_G = np.array([1.0 if row.high is None else row.high for row in large])
        names = tuple(" & ".join(row.group) for row in large)
        counts = (np.array([getattr(row, name) for row in large], dtype=np.float64) for name in ("events", "trials"))
        return GroupErrors(names, *counts, upper_G=upper_G, kind=kind)

    def metric_frame(self) -> "MetricFrame":
        """Returns the table as fairlearn's `MetricFrame`: `rate` (NaN without trials), `events` and `trials` by group.

        `overall` sums the groups of the table, so that it has no pairs across groups.
        """
        from fairlearn.metrics import MetricFrame

        def rate(trials: np.ndarray, events: np.ndarray) -> float:
            return float(np.sum(events) / np.sum(trials)) if np.sum(trials) else float("nan")

        columns = {name: [row.group[k] for row in self.rows] for k, name in enumerate(self.by)}
        return MetricFrame(
            metrics={
                "rate": rate,
                "events": lambda _, events: np.sum(events),
                "trials": lambda trials, _: np.sum(trials),
            },
            y_true=[row.trials for row in self.rows],
            y_pred=[row.events for row in self.rows],
            sensitive_features=columns,
        )


def search_table(
    metric: str,
    event_U: np.ndarray,
    trial_U: np.ndarray,
    units: Units,
    grouping: Grouping,
    *,
    level: float,
    least_identities: int,
) -> GroupTable:
    """Returns a rate of searches (rank-k, FNIR, FPIR) by the group of the probe, from counts of events and trials."""
    groups = _groups_of_people(units, grouping)
    counts = ClusteredCounts.by_identity(
        units.sum_by_group(event_U, grouping)[groups], units.sum_by_group(trial_U, grouping)[groups]
    )
    pooled = ClusteredCounts.by_identity(units.sum_by_identity(event_U), units.sum_by_identity(trial_U))
    names = [grouping.names[g] for g in groups]
    intervals = rate_intervals(counts, level=level, pooled=pooled)
    return _group_table(metric, grouping.by, names, counts, intervals, least_identities)


def pair_table(
    metric: str,
    pairs: UnitPairCounts,
    units: Units,
    grouping: Grouping,
    *,
    level: float,
    least_identities: int,
    across: bool = False,
) -> GroupTable:
    """Returns FNMR or FMR of the pairs within each group; with `across`, also of every two groups.

    A group has the same limits with and without `across`.
    Rows across groups are named by the values of both groups, in columns `left <column>` and `right <column>`.
    """
    groups = _groups_of_people(units, grouping)
    is_kept = [a in groups or b in groups if across else a == b and a in groups for a, b in group_pairs(grouping)]
    indices = np.flatnonzero(is_kept).tolist()
    counts = pairs.clustered_counts(units, grouping).only(indices)
    names = [(grouping.names[a], grouping.names[b]) for a, b in (group_pairs(grouping)[f] for f in indices)]
    names = [(*left, *right) if across else left for left, right in names]
    by = tuple(f"{side} {name}" for side in ("left", "right") for name in grouping.by) if across else grouping.by
    everyone = Grouping((), ((),), np.zeros(len(units), dtype=np.int64))
    intervals = rate_intervals(counts, level=level, pooled=pairs.clustered_counts(units, everyone))
    return _group_table(metric, by, names, counts, intervals, least_identities)


def _groups_of_people(units: Units, grouping: Grouping) -> list[int]:
    """Returns the groups that do not consist of fixed units only."""
    return np.unique(grouping.group_U[~units.fixed_U]).tolist()


def _group_table(
    metric: str,
    by: tuple[str, ...],
    names: Sequence[tuple[str, ...]],
    counts: ClusteredCounts,
    intervals: RateIntervals,
    least_identities: int,
) -> GroupTable:
    rows = tuple(
        GroupRate(
            group=name,
            rate=_none_if_nan(intervals.rate_F[f]),
            low=_none_if_nan(intervals.low_F[f]),
            high=_none_if_nan(intervals.high_F[f]),
            events=float(counts.error_F[f]),
            trials=float(counts.trial_F[f]),
            identities=int(intervals.identities_F[f]),
            effective=_none_if_nan(intervals.effective_F[f]) if counts.trial_F[f] else None,
            small=bool(intervals.identities_F[f] < least_identities),
        )
        for f, name in enumerate(names)
    )
    return GroupTable(metric, by, intervals.level, rows, intervals, counts)


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class GroupSize:
    """Identities and images of a group; `failures` counts images without an embedding (failures to enrol)."""

    group: tuple[str, ...]
    identities: int
    images: int
    failures: int
    failure_rate: float
    small: bool


def group_sizes(
    units: Units, grouping: Grouping, failed_N: np.ndarray, *, least_identities: int
) -> tuple[GroupSize, ...]:
    """Returns identities, images and failures to enrol of each group; `failed_N` marks images without an embedding."""
    group_N = np.where(units.fixed_U, -1, grouping.group_U)[units.unit_N]
    sizes = []
    for g in _groups_of_people(units, grouping):
        identities = len(np.unique(units.identity_U[units.unit_N[group_N == g]]))
        failures, images = int(np.sum(failed_N[group_N == g])), int(np.sum(group_N == g))
        sizes.append(
            GroupSize(grouping.names[g], identities, images, failures, failures / images, identities < least_identities)
        )
    return tuple(sizes)
