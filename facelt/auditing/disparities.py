"""How unequal the groups of one grouping are, figure by figure, as the report and `--fail-if` name them.

R replicates, G groups.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from facelt.auditing.groups import Measured
from facelt.config.audit import StatisticsConfig
from facelt.metrics import bounds, disparity
from facelt.metrics.bounds import Disparity, GroupErrors
from facelt.metrics.conditions import Value
from facelt.metrics.group_tables import GroupTable
from facelt.metrics.resampling import bias_corrected_limits

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
        "gap": (bounds.counted_gap, disparity.gap),
        "ratio": (bounds.counted_ratio, disparity.ratio),
        "max_over_geometric_mean": (bounds.counted_max_over_geometric_mean, disparity.max_over_geometric_mean),
        "gini": (bounds.counted_gini, disparity.gini),
    }
)
JOINT: Mapping[str, tuple[Callable[..., Disparity], Callable[..., np.ndarray]]] = MappingProxyType(
    {
        "fdr": (bounds.counted_fairness_discrepancy_rate, disparity.fairness_discrepancy_rate),
        "inequity": (bounds.counted_inequity_rate, disparity.inequity_rate),
        "garbe": (bounds.counted_garbe, disparity.garbe),
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
    freedom: float

    def of(self, names: list[str]) -> "_Groups":
        """Those of these names alone."""
        place = [self.errors.names.index(name) for name in names]
        counts = (getattr(self.errors, field)[place] for field in ("error_G", "trial_G", "upper_G"))
        return _Groups(GroupErrors(tuple(names), *counts, self.errors.kind), self.rate_RG[:, place], self.freedom)


def disparity_findings(measured: Measured, statistics: StatisticsConfig) -> list[Finding]:
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
    freedom = table.intervals.freedom_F[large].min() if large else np.inf
    return _Groups(table.errors(kind), rate_RF[:, large], float(freedom))


def _misses(table: GroupTable, rate_RF: np.ndarray) -> _Groups:
    hits = _groups(table, rate_RF, "hit")
    upper_G = [1.0 if table.rows[f].low is None else 1 - table.rows[f].low for f in table.large()]
    counts = hits.errors.trial_G - hits.errors.error_G, hits.errors.trial_G, np.array(upper_G)
    return _Groups(GroupErrors(hits.errors.names, *counts, ERRORS[MISSES]), 1 - hits.rate_RG, hits.freedom)


def _finding(by: tuple[str, ...], level: float, name: str, metric: str, figure, groups: tuple, *weights) -> Finding:
    counted, of_rates = figure
    found = counted(*(one.errors for one in groups), *weights)
    value = Value(name, metric, by, found.value, found.at_least, found.note)
    if found.value is None or found.at_least:
        return Finding(value, None, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        value_R = of_rates(*(one.rate_RG for one in groups), *weights)
    freedom = min(one.freedom for one in groups)
    low, high = bias_corrected_limits(value_R, found.value, level=level, freedom=freedom)
    return Finding(value, *(float(end) if np.isfinite(end) else None for end in (low, high)))
