"""Disparities between the groups of one grouping, with bootstrap limits, as reports and `--fail-if` name them.

R replicates, G groups.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.audit.measure import GroupingResult
from facelt.config.audit import StatisticsConfig
from facelt.stats.disparity import DISPARITY_MEASURES, DisparityEstimate, GroupErrors
from facelt.stats.groups import GroupTable
from facelt.stats.resampling import bias_corrected_limits

# Name of one error of each metric. Rank 1 counts hits; the measures of errors use its misses, under this name.
_MISSES = "rank1_miss"
_ERROR_NAMES = MappingProxyType(
    {
        "fmr": "false match",
        "fnmr": "false non-match",
        "fnir": "missed search",
        "fpir": "false positive search",
        _MISSES: "miss at rank 1",
    }
)
# Metric name of the joint measures.
_JOINT = "fmr_fnmr"


@dataclass(frozen=True, eq=False)
class _LargeGroups:
    """Large groups of one metric: counts, rates in each replicate [R,G], and their fewest degrees of freedom."""

    errors: GroupErrors
    rate_RG: np.ndarray
    dof: float

    def subset(self, names: list[str]) -> "_LargeGroups":
        index = [self.errors.names.index(name) for name in names]
        counts = (getattr(self.errors, field)[index] for field in ("error_G", "trial_G", "upper_G"))
        return _LargeGroups(GroupErrors(tuple(names), *counts, self.errors.kind), self.rate_RG[:, index], self.dof)


def grouping_disparities(result: GroupingResult, statistics: StatisticsConfig) -> list[DisparityEstimate]:
    """Returns every disparity of one grouping over its large groups; `alpha` weighs FMR against FNMR if joint."""
    by = result.grouping.by
    groups = {
        metric: _large_groups(table, result.replicates[metric], _ERROR_NAMES[metric])
        for metric, table in result.tables.items()
        if metric in _ERROR_NAMES
    }
    estimates = []
    if "rank1" in result.tables:
        groups[_MISSES] = _misses(result.tables["rank1"], result.replicates["rank1"])
        estimates.append(_estimate("gap", "rank1", by, (groups[_MISSES],), statistics))
    for metric, of_metric in groups.items():
        for name, measure in DISPARITY_MEASURES.items():
            if not measure.is_joint:
                estimates.append(_estimate(name, metric, by, (of_metric,), statistics))
    common = [name for name in groups["fmr"].errors.names if name in groups["fnmr"].errors.names]
    joint = groups["fmr"].subset(common), groups["fnmr"].subset(common)
    for name, measure in DISPARITY_MEASURES.items():
        if measure.is_joint:
            estimates.append(_estimate(name, _JOINT, by, joint, statistics))
    return estimates


def _large_groups(table: GroupTable, rate_RF: np.ndarray, kind: str) -> _LargeGroups:
    large = list(table.large())
    dof = table.intervals.dof_F[large].min() if large else np.inf
    return _LargeGroups(table.errors(kind), rate_RF[:, large], float(dof))


def _misses(table: GroupTable, rate_RF: np.ndarray) -> _LargeGroups:
    hits = _large_groups(table, rate_RF, "hit")
    upper_G = [1.0 if table.rows[f].low is None else 1 - table.rows[f].low for f in table.large()]
    counts = hits.errors.trial_G - hits.errors.error_G, hits.errors.trial_G, np.array(upper_G)
    return _LargeGroups(GroupErrors(hits.errors.names, *counts, _ERROR_NAMES[_MISSES]), 1 - hits.rate_RG, hits.dof)


def _estimate(
    name: str, metric: str, by: tuple[str, ...], groups: tuple[_LargeGroups, ...], statistics: StatisticsConfig
) -> DisparityEstimate:
    measure = DISPARITY_MEASURES[name]
    disparity = measure.from_counts(*(kind.errors for kind in groups), alpha=statistics.alpha)
    value, at_least, note = disparity.value, disparity.at_least, disparity.note
    if value is None or at_least:
        return DisparityEstimate(name, metric, by, value, at_least, note)
    with np.errstate(invalid="ignore", divide="ignore"):
        value_R = measure.from_rates(
            *(kind.rate_RG for kind in groups), *([statistics.alpha] if measure.is_joint else [])
        )
    dof = min(kind.dof for kind in groups)
    limits = bias_corrected_limits(value_R, value, level=statistics.level, dof=dof)
    low, high = (float(limit) if np.isfinite(limit) else None for limit in limits)
    return DisparityEstimate(name, metric, by, value, at_least, note, low, high)
