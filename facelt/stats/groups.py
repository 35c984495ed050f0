"""Groups of images by columns of attributes, and the sets of images no grouping splits.

N images, U units, G groups.

Match errors of compared pairs at fixed thresholds, added up block by block into counts of units of images.

A pair matches at a threshold when it scores at least that much. A mated pair that does not match is a false non-match,
a non-mated pair that matches a false match (ISO/IEC 19795-1).

M pairs of a block, N images, T thresholds, U units, G groups, F figures (pairs of groups), I identities.

Tables of rates by group, or by two groups compared, with counts and limits: fairlearn's frame, our intervals.

U units, G groups, F rows of a table, I identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from facelt.errors import UserError
from facelt.stats.disparity import GroupErrors
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals

# What stands for an attribute that is not known: such images are a group of their own and no image is dropped.
UNKNOWN = "(unknown)"


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups that the columns `by` make: a name a group, with one value a column, and the group of each unit."""

    by: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    group_U: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The groups' names in one word each, as `female & 30-39`."""
        return tuple(" & ".join(name) for name in self.names)

    def members(self) -> np.ndarray:
        """1 where a unit is in a group, float64 [U,G]: counts by unit times it are counts by group."""
        return (self.group_U[:, None] == np.arange(len(self))).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Units:
    """Images of one identity that agree in every column, as one unit: counts of units add up to those of any group.

    `unit_N` is the unit of each image, `identity_U` the identity of each unit (positions in `identities`), `values`
    the columns' values by unit. `fixed_U` marks units that stand for a collection, such as all distractors, and not for
    a person: no interval imagines other draws of those.
    """

    unit_N: np.ndarray
    identity_U: np.ndarray
    identities: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    fixed_U: np.ndarray

    @classmethod
    def of(
        cls,
        identity_N: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        fixed_N: np.ndarray | None = None,
    ) -> "Units":
        """The units of N images; an empty attribute is `UNKNOWN`. ValueError on lengths that differ."""
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
        """The groups of one column, or of the intersections of several, in the order of their names.

        Raises UserError on a column that is not there, naming those that are.
        """
        missing = [name for name in by if name not in self.values]
        if missing or not by:
            known = ", ".join(self.values) or "none"
            raise UserError(f"no column {', '.join(map(repr, missing)) or 'named'} to group by: columns are {known}")
        names = list(zip(*(self.values[name] for name in by), strict=True))
        order = sorted(set(names))
        place = {name: g for g, name in enumerate(order)}
        return Grouping(tuple(by), tuple(order), np.array([place[name] for name in names], dtype=np.int64))

    def identity_groups(self, grouping: Grouping) -> np.ndarray | None:
        """The group of each identity, int64 [I]; None where an identity is in several, so that none is its own."""
        group_I = np.full(len(self.identities), -1, dtype=np.int64)
        group_I[self.identity_U] = grouping.group_U
        return group_I if (group_I[self.identity_U] == grouping.group_U).all() else None

    def per_identity(self, count_FU: np.ndarray) -> np.ndarray:
        """Counts by unit, [F,U], as counts by identity, [F,I]; fixed units, which are nobody's, are left out."""
        count_FU = np.atleast_2d(count_FU).astype(np.float64)
        count_IF = np.zeros((len(self.identities), len(count_FU)))
        np.add.at(count_IF, self.identity_U[~self.fixed_U], count_FU[:, ~self.fixed_U].T)
        return count_IF.T

    def per_group(self, count_U: np.ndarray, grouping: Grouping) -> np.ndarray:
        """Counts by unit as counts by group and identity, [G,I]: what `TouchedCounts.by_identity` takes."""
        count_GU = np.where(grouping.group_U == np.arange(len(grouping))[:, None], count_U, 0)
        return self.per_identity(count_GU)


# Non-mated counts are kept whole, 8 bytes a pair of units, for the trials and for the errors at each threshold.
_MOST_CELLS = 1 << 27


@dataclass(frozen=True, eq=False)
class UnitPairCounts:
    """Errors among trials of mated or of non-mated pairs by the units of both sides: symmetric, [U,U].

    No pair has a first side: one of two units is counted in both of their cells, one within a unit twice in its cell,
    so that a sum over all cells counts each pair twice. Mated counts are sparse.
    """

    error_UU: np.ndarray
    trial_UU: np.ndarray
    mated: bool

    def clustered_counts(self, units: Units, grouping: Grouping) -> ClusteredCounts:
        """The counts of each of `cells(grouping)`, and of each identity's part in them."""
        error_F, error_FI = self._sum_by_identity(self.error_UU, units, grouping)
        trial_F, trial_FI = self._sum_by_identity(self.trial_UU, units, grouping)
        return ClusteredCounts(error_F, trial_F, error_FI, trial_FI)

    def by_identity(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of non-mated pairs by both identities, symmetric float64 [I,I], without fixed units."""
        error_IU, trial_IU = (units.per_identity(count_UU).T for count_UU in (self.error_UU, self.trial_UU))
        return units.per_identity(error_IU), units.per_identity(trial_IU)

    def _sum_by_identity(self, count_UU: np.ndarray, units: Units, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
        member_UG = grouping.members()
        count_UG = count_UU @ member_UG
        sum_GG = member_UG.T @ count_UG
        pairs = group_pairs(grouping)
        count_FU = np.zeros((len(pairs), len(units)))
        for f, (a, b) in enumerate(pairs):
            count_FU[f] += member_UG[:, a] * count_UG[:, b]
            if a != b:
                count_FU[f] += member_UG[:, b] * count_UG[:, a]
        # Both ends of a mated pair belong to one identity, which has one part in it, not two.
        count_FI = units.per_identity(count_FU) / (2 if self.mated else 1)
        return np.array([sum_GG[a, b] / (2 if a == b else 1) for a, b in pairs]), count_FI


def group_pairs(grouping: Grouping) -> tuple[tuple[int, int], ...]:
    """The pairs of groups whose images are compared, a <= b, in the order in which figures of pairs come."""
    return tuple(combinations_with_replacement(range(len(grouping)), 2))


def within_group_pairs(grouping: Grouping) -> list[int]:
    """The positions in `cells` of each group compared with itself, in the order of the groups."""
    return [f for f, (a, b) in enumerate(group_pairs(grouping)) if a == b]


class PairCounter:
    """Adds up blocks of pairs, of which there may be 1e8, at the thresholds that were fixed beforehand.

    Args:
        units: the images that are compared, see `Units`.
        thresholds: a pair scoring at least that much matches.

    Raises:
        UserError: more units than tables of units against units can be kept of.
    """

    def __init__(self, units: Units, thresholds: Sequence[float]) -> None:
        self.units = units
        self.threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
        size = len(units)
        if (len(self.threshold_T) + 1) * size * size > _MOST_CELLS:
            most = int(np.sqrt(_MOST_CELLS / (len(self.threshold_T) + 1)))
            raise UserError(
                f"{size} sets of images of one identity and one group are too many to compare with each other: at most "
                f"{most} at {len(self.threshold_T)} thresholds; group by fewer columns, or audit a sample of identities"
            )
        self._non_mated_trial_K = np.zeros(size * size, dtype=np.int64)
        self._non_mated_error_TK = np.zeros((len(self.threshold_T), size * size), dtype=np.int64)
        self._mated_trial = self._sparse(np.zeros(0, dtype=np.int64))
        self._mated_error_T = [self._mated_trial for _ in self.threshold_T]

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Counts a block of pairs: each once, in any order, as positions among the units' N images.

        Raises:
            UserError: a score that is no number.
            ValueError: lengths that differ, or a pair that is called mated and is of two identities, or the reverse.
        """
        score_M, mated_M = np.asarray(score_M), np.asarray(mated_M, dtype=bool)
        left_M, right_M = self.units.unit_N[left_M], self.units.unit_N[right_M]
        if not len(score_M) == len(mated_M) == len(left_M) == len(right_M):
            raise ValueError(f"{len(score_M)} scores, {len(mated_M)} labels, {len(left_M)} and {len(right_M)} images")
        if np.isnan(score_M).any():
            raise UserError(f"the score of pair {int(np.argmax(np.isnan(score_M)))} of a block is no number")
        identity_U, fixed_U = self.units.identity_U, self.units.fixed_U
        wrong_M = (identity_U[left_M] == identity_U[right_M]) & ~fixed_U[left_M] != mated_M
        if wrong_M.any():
            first = int(np.argmax(wrong_M))
            ends = " and ".join(self.units.identities[identity_U[end_M[first]]] for end_M in (left_M, right_M))
            raise ValueError(f"pair {first} of a block, of {ends}, is {'' if mated_M[first] else 'not '}called mated")
        key_M = np.minimum(left_M, right_M) * len(self.units) + np.maximum(left_M, right_M)
        other_M = ~mated_M
        np.add.at(self._non_mated_trial_K, key_M[other_M], 1)
        self._mated_trial = self._mated_trial + self._sparse(key_M[mated_M])
        for t, threshold in enumerate(self.threshold_T):
            match_M = score_M >= threshold
            np.add.at(self._non_mated_error_TK[t], key_M[other_M & match_M], 1)
            self._mated_error_T[t] = self._mated_error_T[t] + self._sparse(key_M[mated_M & ~match_M])

    def non_mated(self, threshold: int) -> UnitPairCounts:
        """False matches among non-mated pairs at the threshold of that position."""
        shape = len(self.units), len(self.units)
        counts = self._non_mated_error_TK[threshold].reshape(shape), self._non_mated_trial_K.reshape(shape)
        return UnitPairCounts(*(count_UU + count_UU.T for count_UU in counts), mated=False)

    def mated(self, threshold: int) -> UnitPairCounts:
        """False non-matches among mated pairs at the threshold of that position."""
        counts = self._mated_error_T[threshold], self._mated_trial
        return UnitPairCounts(*(count_UU + count_UU.T for count_UU in counts), mated=True)

    def _sparse(self, key_M: np.ndarray):
        from scipy.sparse import csr_array

        size = len(self.units)
        ends = np.divmod(key_M, size)
        return csr_array((np.ones(len(key_M), dtype=np.int64), ends), shape=(size, size))


@dataclass(frozen=True)
class GroupRate:
    """One row: a group, or the two groups that are compared, and its events among trials.

    `rate` is None without trials, `low` and `high` also with trials of fewer than two identities. `effective` is how
    many independent trials these are worth. A `small` row has fewer identities than were asked for: it is shown, and no
    disparity is drawn from it.
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
    """Rates of one metric by the columns `by`, row for row those of `intervals` and of `counts`."""

    metric: str
    by: tuple[str, ...]
    level: float
    rows: tuple[GroupRate, ...]
    intervals: RateIntervals
    counts: ClusteredCounts

    def large(self) -> tuple[int, ...]:
        """The positions of the rows that have a rate and are not small."""
        return tuple(f for f, row in enumerate(self.rows) if row.rate is not None and not row.small)

    def errors(self, kind: str) -> GroupErrors:
        """The large rows as errors, for `facelt.stats.disparity`; `kind` is what one event is called."""
        kept = [self.rows[f] for f in self.large()]
        # A group of one identity has no limits; nothing is then known against a rate of 1.
        upper_G = np.array([1.0 if row.high is None else row.high for row in kept])
        names = tuple(" & ".join(row.group) for row in kept)
        counts = (np.array([getattr(row, name) for row in kept], dtype=np.float64) for name in ("events", "trials"))
        return GroupErrors(names, *counts, upper_G=upper_G, kind=kind)


@dataclass(frozen=True)
class GroupSize:
    """How much there is of a group, and how many of its images gave no embedding (failures to enrol)."""

    group: tuple[str, ...]
    identities: int
    images: int
    failures: int
    failure_rate: float
    small: bool


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
    """A rate of searches (rank-k, FNIR, FPIR) by the group of the probe, from counts of events and trials by unit."""
    event_U, trial_U = np.asarray(event_U, dtype=np.float64), np.asarray(trial_U, dtype=np.float64)
    people = _people(units, grouping)
    counts = ClusteredCounts.by_identity(
        units.per_group(event_U, grouping)[people], units.per_group(trial_U, grouping)[people]
    )
    columns = _columns(grouping.by, [grouping.names[g] for g in grouping.group_U])
    own_U = ~units.fixed_U
    frame = rate_frame(event_U[own_U], trial_U[own_U], {name: value[own_U] for name, value in columns.items()})
    names = [grouping.names[g] for g in people]
    return _table(metric, grouping.by, names, frame, counts, level, least_identities)


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
    """FNMR or FMR of pairs within each group; with `across`, of every two groups as well, each way round once.

    Rows across groups are named by both groups' values, one after the other, and their columns `left <column>` and
    `right <column>`. An image's pairs with another group's are in no group's own row.
    """
    pairs_of_groups, people = group_pairs(grouping), _people(units, grouping)
    chosen = [f for f in within_group_pairs(grouping) if pairs_of_groups[f][0] in people]
    if across:
        chosen = [f for f, (a, b) in enumerate(pairs_of_groups) if a in people or b in people]
    counts = pairs.clustered_counts(units, grouping).only(chosen)
    event_UG, trial_UG = pairs.error_UU @ grouping.members(), pairs.trial_UU @ grouping.members()
    by = tuple(f"{side} {name}" for side in ("left", "right") for name in grouping.by) if across else grouping.by
    events, trials, names, rows = [], [], [], []
    for a, b in (pairs_of_groups[f] for f in chosen):
        own_U = grouping.group_U == a
        # Within a group both ends of a pair are seen.
        events.append(event_UG[own_U, b] / (2 if a == b else 1))
        trials.append(trial_UG[own_U, b] / (2 if a == b else 1))
        names.append((*grouping.names[a], *grouping.names[b]) if across else grouping.names[a])
        rows += [names[-1]] * int(own_U.sum())
    frame = rate_frame(np.concatenate(events), np.concatenate(trials), _columns(by, rows))
    return _table(metric, by, names, frame, counts, level, least_identities)


def group_sizes(
    units: Units, grouping: Grouping, failed_N: np.ndarray, *, least_identities: int
) -> tuple[GroupSize, ...]:
    """Identities, images and failures to enrol of each group; `failed_N` marks images without an embedding."""
    from fairlearn.metrics import MetricFrame, count

    own_N = ~units.fixed_U[units.unit_N]
    group_N = grouping.group_U[units.unit_N][own_N]
    identity_N = units.identity_U[units.unit_N][own_N]
    frame = MetricFrame(
        metrics={
            "identities": lambda identity, _: len(np.unique(identity)),
            "images": count,
            "failures": lambda _, failed: int(np.sum(failed)),
            "failure_rate": lambda _, failed: float(np.mean(failed)),
        },
        y_true=identity_N,
        y_pred=np.asarray(failed_N, dtype=bool)[own_N],
        sensitive_features=_columns(grouping.by, [grouping.names[g] for g in group_N]),
    )
    sizes = []
    for name in dict.fromkeys(grouping.names[g] for g in np.sort(group_N)):
        row = frame.by_group.loc[name if len(name) > 1 else name[0]]
        counts = (int(row[key]) for key in ("identities", "images", "failures"))
        sizes.append(GroupSize(name, *counts, float(row["failure_rate"]), row["identities"] < least_identities))
    return tuple(sizes)


def rate_frame(event_R: np.ndarray, trial_R: np.ndarray, columns: Mapping[str, Sequence[str]]):
    """fairlearn's `MetricFrame` of events over trials: `rate` (NaN without trials), `events` and `trials`.

    Each of the R rows stands for many trials at once, so that 1e8 pairs need no 1e8 rows.
    """
    from fairlearn.metrics import MetricFrame

    def rate(trial: np.ndarray, event: np.ndarray) -> float:
        return float(np.sum(event) / np.sum(trial)) if np.sum(trial) else float("nan")

    return MetricFrame(
        metrics={"rate": rate, "events": lambda _, event: np.sum(event), "trials": lambda trial, _: np.sum(trial)},
        y_true=trial_R,
        y_pred=event_R,
        sensitive_features=dict(columns),
    )


def _people(units: Units, grouping: Grouping) -> list[int]:
    """The groups that hold anybody: not those of fixed units alone."""
    return np.unique(grouping.group_U[~units.fixed_U]).tolist()


def _columns(by: Sequence[str], names: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    return {name: np.array([values[k] for values in names], dtype=object) for k, name in enumerate(by)}


def _table(metric, by, names, frame, counts: ClusteredCounts, level: float, least_identities: int) -> GroupTable:
    intervals = rate_intervals(counts, level=level)
    rows = []
    for f, name in enumerate(names):
        point = frame.by_group.loc[name if len(name) > 1 else name[0]]
        rows.append(
            GroupRate(
                group=tuple(name),
                rate=_known(point["rate"]),
                low=_known(intervals.low_F[f]),
                high=_known(intervals.high_F[f]),
                events=float(point["events"]),
                trials=float(point["trials"]),
                identities=int(intervals.identities_F[f]),
                effective=_known(intervals.effective_F[f]) if point["trials"] else None,
                small=bool(intervals.identities_F[f] < least_identities),
            )
        )
    return GroupTable(metric, tuple(by), level, tuple(rows), intervals, counts)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
