"""Disparities between the groups of one grouping, with their limits, as reports and `--fail-if` name them.

G groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from facelt.audit.measure import GroupingResult
from facelt.config.audit import StatisticsConfig
from facelt.stats.disparity import DISPARITY_MEASURES, DisparityEstimate, GroupErrors
from facelt.stats.groups import GroupTable
from facelt.stats.intervals import RateIntervals

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
# The rate of the group with the highest error rate, or with the lowest rank-1 rate.
_WORST = "worst"


def available_disparities(metrics: Iterable[str]) -> list[tuple[str, str]]:
    """Returns figure and metric of each disparity of an audit that measures these metrics, in the report's order."""
    metrics = list(metrics)
    single = [name for name, measure in DISPARITY_MEASURES.items() if not measure.is_joint]
    joint = [name for name, measure in DISPARITY_MEASURES.items() if measure.is_joint]
    has_rank1 = "rank1" in metrics
    errors = [metric for metric in metrics if metric in _ERROR_NAMES] + [_MISSES] * has_rank1
    of_rank1 = [(_WORST, "rank1"), ("gap", "rank1")] if has_rank1 else []
    return [
        *of_rank1,
        *((name, metric) for metric in errors for name in (_WORST, *single)),
        *((name, _JOINT) for name in joint),
    ]


@dataclass(frozen=True, eq=False)
class _LargeGroups:
    """Large groups of one metric: their counts as errors, and their figures among the intervals of the table."""

    errors: GroupErrors
    intervals: RateIntervals
    figures: tuple[int, ...]

    def subset(self, names: list[str]) -> "_LargeGroups":
        index = [self.errors.names.index(name) for name in names]
        counts = (getattr(self.errors, field)[index] for field in ("error_G", "trial_G", "upper_G"))
        errors = GroupErrors(tuple(names), *counts, self.errors.kind)
        return _LargeGroups(errors, self.intervals, tuple(self.figures[g] for g in index))


def grouping_disparities(result: GroupingResult, statistics: StatisticsConfig) -> list[DisparityEstimate]:
    """Returns every disparity of one grouping over its large groups; `alpha` weighs FMR against FNMR if joint."""
    groups = {
        metric: _LargeGroups(table.errors(_ERROR_NAMES.get(metric, "hit")), table.intervals, table.large())
        for metric, table in result.tables.items()
    }
    if "rank1" in result.tables:
        groups[_MISSES] = _misses(result.tables["rank1"], groups["rank1"])
    common = [name for name in groups["fmr"].errors.names if name in groups["fnmr"].errors.names]
    joint = groups["fmr"].subset(common), groups["fnmr"].subset(common)
    return [
        _worst(metric, result.grouping.by, groups[metric], statistics.level)
        if name == _WORST
        else _estimate(name, metric, result.grouping.by, joint if metric == _JOINT else (groups[metric],), statistics)
        for name, metric in available_disparities(result.tables)
    ]


def _misses(table: GroupTable, hits: _LargeGroups) -> _LargeGroups:
    intervals = table.intervals
    misses = replace(
        intervals,
        rate_F=1 - intervals.rate_F,
        low_F=1 - intervals.high_F,
        high_F=1 - intervals.low_F,
        influence_FI=-intervals.influence_FI,
    )
    upper_G = np.nan_to_num(misses.high_F[list(hits.figures)], nan=1)
    counts = hits.errors.trial_G - hits.errors.error_G, hits.errors.trial_G, upper_G
    return _LargeGroups(GroupErrors(hits.errors.names, *counts, _ERROR_NAMES[_MISSES]), misses, hits.figures)


def _worst(metric: str, by: tuple[str, ...], groups: _LargeGroups, level: float) -> DisparityEstimate:
    """Returns the rate of the worst group; its limits hold for all groups at once, whichever is the worst."""
    if not groups.figures:
        return DisparityEstimate(_WORST, metric, by, None, note="no group is large enough")
    of_group = groups.intervals.at_level(1 - (1 - level) / len(groups.figures))
    rate_G, low_G, high_G = (
        value_F[list(groups.figures)] for value_F in (of_group.rate_F, of_group.low_F, of_group.high_F)
    )
    worst, choose = (rate_G.argmin(), np.min) if metric == "rank1" else (rate_G.argmax(), np.max)
    limits = (float(choose(low_G)), float(choose(high_G)))
    name = groups.errors.names[worst]
    return DisparityEstimate(_WORST, metric, by, float(rate_G[worst]), False, f"in {name}", *limits)


def _estimate(
    name: str, metric: str, by: tuple[str, ...], groups: tuple[_LargeGroups, ...], statistics: StatisticsConfig
) -> DisparityEstimate:
    measure = DISPARITY_MEASURES[name]
    disparity = measure.from_counts(*(kind.errors for kind in groups), alpha=statistics.alpha)
    estimate = DisparityEstimate(name, metric, by, disparity.value, disparity.at_least, disparity.note)
    if disparity.value is None:
        return estimate
    kinds = [(kind.intervals, kind.figures) for kind in groups]
    low, high = measure.limits(kinds, level=statistics.level, alpha=statistics.alpha)
    # A bound takes the least unequal rates, and is a limit itself.
    return replace(estimate, low=min(low, disparity.value), high=high if np.isfinite(high) else None)
