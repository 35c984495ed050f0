"""What was measured, as the report holds it (schema facelt.audit/1): plain rows by name."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from facelt.auditing.disparities import Finding
from facelt.auditing.groups import Measured
from facelt.auditing.thresholds import Threshold
from facelt.identification import ScoreHistograms
from facelt.metrics.contrasts import Contrast
from facelt.metrics.coverage_table import measured_coverage
from facelt.metrics.group_tables import GroupRate

MEASURED_LEVEL = 0.95


def grouping_section(
    measured: Measured, findings: Sequence[Finding], contrasts: Sequence[Contrast], fmr: float | None
) -> dict[str, Any]:
    """One grouping of the report; `fmr` is what groups' own thresholds are looked up for, None for no such analysis."""
    place = {table: {row.group: row for row in rows.rows} for table, rows in measured.tables.items()}
    trade_offs = {name: measured.histograms.within(g) for g, name in enumerate(measured.grouping.names)}
    return {
        "by": list(measured.grouping.by),
        "groups": [
            {
                **asdict(size),
                "small": bool(size.small),
                "rates": {
                    metric: rate(rows.get(size.group), interval_kind(metric), measured.across.level)
                    for metric, rows in place.items()
                },
                "own_threshold": own_threshold(trade_offs.get(size.group), fmr),
            }
            for size in measured.sizes
        ],
        "across": [_across(row, len(measured.grouping.by), measured.across.level) for row in measured.across.rows],
        "det": [{"group": list(name), **det(histograms)} for name, histograms in trade_offs.items()],
        "disparities": [{**asdict(one.value), "low": one.low, "high": one.high} for one in findings],
        "contrasts": [asdict(one) for one in contrasts],
    }


def rate(row: GroupRate | None, kind: str, level: float) -> dict[str, Any] | None:
    """A rate with its limits and counts, and how often such limits were measured to cover the truth.

    `kind` is that of the interval (`facelt.metrics.coverage_table`); only those of 95% were measured.
    """
    if row is None:
        return None
    found = measured_coverage(kind, row.identities) if level == MEASURED_LEVEL else None
    coverage = None if found is None else {"mean": found.mean, "lowest": found.lowest}
    return {**{key: value for key, value in asdict(row).items() if key != "group"}, "coverage": coverage}


def interval_kind(metric: str) -> str:
    """Which of the measured intervals a metric's is: non-mated pairs touch two people, all else one."""
    return "pair" if metric == "fmr" else "search"


def det(histograms: ScoreHistograms) -> dict[str, list[float]]:
    """The points of a DET curve, FMR ascending; empty without mated or non-mated pairs."""
    curve = histograms.det()
    return {"fmr": curve.fmr_T.tolist(), "fnmr": curve.fnmr_T.tolist(), "threshold": curve.threshold_T.tolist()}


def own_threshold(histograms: ScoreHistograms | None, fmr: float | None) -> dict[str, Any] | None:
    """What a threshold of the group's own for that FMR would do; its `reason` says why there is none."""
    if histograms is None or fmr is None:
        return None
    point = histograms.point(fmr)
    keys = ("wanted", "threshold", "fmr", "fnmr", "supported", "reason")
    return {key: getattr(point, key) for key in keys}


def threshold_section(threshold: Threshold) -> dict[str, Any]:
    """A threshold and where it was set."""
    return asdict(threshold)


def _across(row: GroupRate, columns: int, level: float) -> dict[str, Any]:
    left, right = list(row.group[:columns]), list(row.group[columns:])
    return {"left": left, "right": right, **rate(row, "pair" if left == right else "pair_across", level)}
