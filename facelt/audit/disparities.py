"""How unequal the groups of one grouping are, figure by figure, as the report and `--fail-if` name them.

R replicates, G groups.

Two models on the same images: differences of rank 1 by group, by identity. U units, G groups, I identities.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from facelt.audit.inputs import AuditInputs
from facelt.audit.measure import GroupingResult, SearchOutcomes
from facelt.config.audit import AuditConfig, StatisticsConfig
from facelt.stats import disparity
from facelt.stats.disparity import Disparity, GroupErrors
from facelt.stats.fail_conditions import Value
from facelt.stats.groups import Grouping, GroupTable, Units
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.stats.permutation import holm_adjust, paired_permutation_test
from facelt.stats.resampling import bias_corrected_limits

# What one error of a metric is called. Of rank 1 the misses are the errors: figures of errors alone go by this name.
MISSES = "rank1_miss"
ERRORS = MappingProxyType(
    {
        "fmr": "false match",
        "fnmr": "false non-match",
        "fnir": "missed search",
        "fpir": "false positive search",
        MISSES: "miss at rank 1",
    }
)
# Figures of both match errors together.
BOTH = "fmr_fnmr"

# Of each figure: what is said of counts, and the same of rates [R,G] alone.
SINGLE: Mapping[str, tuple[Callable[..., Disparity], Callable[..., np.ndarray]]] = MappingProxyType(
    {
        "gap": (disparity.gap_from_counts, disparity.gap),
        "ratio": (disparity.ratio_from_counts, disparity.ratio),
        "max_over_geometric_mean": (disparity.max_over_geometric_mean_from_counts, disparity.max_over_geometric_mean),
        "gini": (disparity.gini_from_counts, disparity.gini),
    }
)
JOINT: Mapping[str, tuple[Callable[..., Disparity], Callable[..., np.ndarray]]] = MappingProxyType(
    {
        "fdr": (disparity.fairness_discrepancy_rate_from_counts, disparity.fairness_discrepancy_rate),
        "inequity": (disparity.inequity_rate_from_counts, disparity.inequity_rate),
        "garbe": (disparity.garbe_from_counts, disparity.garbe),
    }
)


@dataclass(frozen=True)
class Finding:
    """A figure with its bootstrap limits; None where it has no value or is a bound itself."""

    value: Value
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class _Groups:
    """The large groups of one metric: their counts, their rates in each replicate, the fewest degrees of freedom."""

    errors: GroupErrors
    rate_RG: np.ndarray
    dof: float

    def of(self, names: list[str]) -> "_Groups":
        """Those of these names alone."""
        place = [self.errors.names.index(name) for name in names]
        counts = (getattr(self.errors, field)[place] for field in ("error_G", "trial_G", "upper_G"))
        return _Groups(GroupErrors(tuple(names), *counts, self.errors.kind), self.rate_RG[:, place], self.dof)


def grouping_disparities(measured: GroupingResult, statistics: StatisticsConfig) -> list[Finding]:
    """Every figure of one grouping; small groups take no part. `alpha` weighs FMR against FNMR in the joint ones."""
    limits = partial(_finding, measured.grouping.by, statistics.level)
    groups = {
        metric: _groups(table, measured.replicates[metric], ERRORS[metric])
        for metric, table in measured.tables.items()
        if metric in ERRORS
    }
    found = []
    if "rank1" in measured.tables:
        groups[MISSES] = _misses(measured.tables["rank1"], measured.replicates["rank1"])
        found.append(limits("gap", "rank1", SINGLE["gap"], (groups[MISSES],)))
    for metric, one in groups.items():
        found += [limits(name, metric, figure, (one,)) for name, figure in SINGLE.items()]
    both = [name for name in groups["fmr"].errors.names if name in groups["fnmr"].errors.names]
    joint = groups["fmr"].of(both), groups["fnmr"].of(both)
    return found + [limits(name, BOTH, figure, joint, statistics.alpha) for name, figure in JOINT.items()]


def _groups(table: GroupTable, rate_RF: np.ndarray, kind: str) -> _Groups:
    large = list(table.large())
    dof = table.intervals.dof_F[large].min() if large else np.inf
    return _Groups(table.errors(kind), rate_RF[:, large], float(dof))


def _misses(table: GroupTable, rate_RF: np.ndarray) -> _Groups:
    hits = _groups(table, rate_RF, "hit")
    upper_G = [1.0 if table.rows[f].low is None else 1 - table.rows[f].low for f in table.large()]
    counts = hits.errors.trial_G - hits.errors.error_G, hits.errors.trial_G, np.array(upper_G)
    return _Groups(GroupErrors(hits.errors.names, *counts, ERRORS[MISSES]), 1 - hits.rate_RG, hits.dof)


def _finding(by: tuple[str, ...], level: float, name: str, metric: str, figure, groups: tuple, *weights) -> Finding:
    counted, of_rates = figure
    found = counted(*(one.errors for one in groups), *weights)
    value = Value(name, metric, by, found.value, found.at_least, found.note)
    if found.value is None or found.at_least:
        return Finding(value, None, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        value_R = of_rates(*(one.rate_RG for one in groups), *weights)
    dof = min(one.dof for one in groups)
    low, high = bias_corrected_limits(value_R, found.value, level=level, dof=dof)
    return Finding(value, *(float(end) if np.isfinite(end) else None for end in (low, high)))


def compare_models(
    config: AuditConfig,
    inputs: AuditInputs,
    first: SearchOutcomes,
    second: SearchOutcomes,
    measured: Mapping[tuple[str, ...], GroupingResult],
) -> dict[str, Any]:
    """The section `against`: by group, rank 1 of the audited model, of the other one, and their difference.

    Intervals take both models' correlation over identities into account; p values are of identities swapping models,
    adjusted by Holm over the section.
    """
    subject = inputs.subject
    groupings = []
    for by in measured:
        units = Units.of(
            subject.enrolled(subject.identities), {name: subject.enrolled(inputs.columns[name]) for name in by}
        )
        rows = _rows(config, units, units.grouping(by), first, second)
        groupings.append({"by": list(by), "rows": rows})
    every = [row for grouping in groupings for row in grouping["rows"]]
    for row, value in zip(every, holm_adjust([row["p"] for row in every]), strict=True):
        row["adjusted_p"] = value
    return {"metric": "rank1", "other": str(config.against.path), "groupings": groupings}


def _rows(
    config: AuditConfig, units: Units, grouping: Grouping, first: SearchOutcomes, second: SearchOutcomes
) -> list[dict[str, Any]]:
    statistics, groups = config.statistics, len(grouping)
    hit_2GI, trial_GI = _by_group(units, grouping, first, second)
    counts = ClusteredCounts.by_identity(np.concatenate(hit_2GI), np.concatenate([trial_GI, trial_GI]))
    intervals = rate_intervals(counts, level=statistics.level)
    rows = []
    for g, name in enumerate(grouping.names):
        low, high = intervals.difference(groups + g, g)
        draws = {"permutations": statistics.replicates, "seed": statistics.seed}
        chance = paired_permutation_test(hit_2GI[0][g], hit_2GI[1][g], trial_GI[g], **draws)
        rows.append(
            {
                "group": list(name),
                "rate": intervals.rate_F[g],
                "other_rate": intervals.rate_F[groups + g],
                "difference": intervals.rate_F[groups + g] - intervals.rate_F[g],
                "low": low,
                "high": high,
                "identities": int(intervals.identities_F[g]),
                "small": bool(intervals.identities_F[g] < config.min_identities),
                "p": None if chance is None else asdict(chance)["p"],
            }
        )
    return rows


def _by_group(
    units: Units, grouping: Grouping, first: SearchOutcomes, second: SearchOutcomes
) -> tuple[list[np.ndarray], np.ndarray]:
    count_3U = [
        np.bincount(units.unit_N, weights=count_P, minlength=len(units))
        for count_P in (first.event_P, second.event_P, first.trial_P)
    ]
    hit_GI, other_GI, trial_GI = (units.per_group(count_U, grouping) for count_U in count_3U)
    return [hit_GI, other_GI], trial_GI
