"""Tables of rates by group, or by two groups compared, with counts and limits: fairlearn's frame, our intervals.

U units, G groups, F rows of a table, I identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.metrics.bounds import GroupErrors
from facelt.metrics.clustered import RateIntervals, TouchedCounts, rate_intervals
from facelt.metrics.groups import Grouping, Units
from facelt.metrics.pair_counts import UnitPairs, cells, own_cells


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
    """Rates of one metric by the columns `by`, row for row those of `intervals` and of `touched`."""

    metric: str
    by: tuple[str, ...]
    level: float
    rows: tuple[GroupRate, ...]
    intervals: RateIntervals
    touched: TouchedCounts

    def large(self) -> tuple[int, ...]:
        """The positions of the rows that have a rate and are not small."""
        return tuple(f for f, row in enumerate(self.rows) if row.rate is not None and not row.small)

    def errors(self, kind: str) -> GroupErrors:
        """The large rows as errors, for `facelt.metrics.bounds`; `kind` is what one event is called."""
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
    touched = TouchedCounts.of_searches(
        units.per_group(event_U, grouping)[people], units.per_group(trial_U, grouping)[people]
    )
    columns = _columns(grouping.by, [grouping.names[g] for g in grouping.group_U])
    own_U = ~units.fixed_U
    frame = rate_frame(event_U[own_U], trial_U[own_U], {name: value[own_U] for name, value in columns.items()})
    names = [grouping.names[g] for g in people]
    return _table(metric, grouping.by, names, frame, touched, level, least_identities)


def pair_table(
    metric: str,
    pairs: UnitPairs,
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
    pairs_of_groups, people = cells(grouping), _people(units, grouping)
    chosen = [f for f in own_cells(grouping) if pairs_of_groups[f][0] in people]
    if across:
        chosen = [f for f, (a, b) in enumerate(pairs_of_groups) if a in people or b in people]
    touched = pairs.touched(units, grouping).only(chosen)
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
    return _table(metric, by, names, frame, touched, level, least_identities)


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


def _table(metric, by, names, frame, touched: TouchedCounts, level: float, least_identities: int) -> GroupTable:
    intervals = rate_intervals(touched, level=level)
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
    return GroupTable(metric, tuple(by), level, tuple(rows), intervals, touched)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
