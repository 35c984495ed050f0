"""What was measured, as the report holds it (schema facelt.audit/1): plain rows by name.

The whole audit: inputs, thresholds, every grouping, and the report (schema facelt.audit/1). P enrolled images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from facelt.audit.audited_set import AuditedSet
from facelt.audit.disparities import Finding, compare_models, grouping_disparities
from facelt.audit.inputs import AuditInputs, open_inputs
from facelt.audit.measure import (
    DecisionThreshold,
    GroupingResult,
    SearchOutcomes,
    choose_thresholds,
    fnir_fpir_outcomes,
    half_gallery_searches,
    measure_grouping,
    nonmated_max_scores,
    rank1_outcomes,
)
from facelt.audit.training_set import training_section
from facelt.config.audit import AuditConfig
from facelt.errors import UserError
from facelt.identification.error_rates import ScoreHistograms
from facelt.identification.open_set import OpenSetSearches
from facelt.report.audit_schema import AuditReport
from facelt.stats.coverage import measured_coverage
from facelt.stats.fail_conditions import FailCondition, Value, parse_fail_condition
from facelt.stats.groups import GroupRate
from facelt.stats.permutation import Contrast, holm_adjust_contrasts
from facelt.store.attributes import AttributeColumns
from recordio_tools.progress import ProgressFn, no_progress, relabel, track

MEASURED_LEVEL = 0.95


def grouping_section(
    measured: GroupingResult, findings: Sequence[Finding], contrasts: Sequence[Contrast], fmr: float | None
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

    `kind` is that of the interval (`facelt.stats.coverage`); only those of 95% were measured.
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


def threshold_section(threshold: DecisionThreshold) -> dict[str, Any]:
    """A threshold and where it was set."""
    return asdict(threshold)


def _across(row: GroupRate, columns: int, level: float) -> dict[str, Any]:
    left, right = list(row.group[:columns]), list(row.group[columns:])
    return {"left": left, "right": right, **rate(row, "pair" if left == right else "pair_across", level)}


# The one group that everyone is in.
EVERYONE = "(everyone)"


def run_audit(config: AuditConfig, progress: ProgressFn = no_progress) -> AuditReport:
    """The report. Everything that can be refused without comparing anything is refused first.

    Raises UserError naming the file, the key, the line or the image at fault. A condition that cannot be decided, or
    names a figure that the report does not have, is no error here: the report says so (`undecided`).
    """
    conditions = [parse_fail_condition(text) for text in config.fail_if]
    report = {
        "title": config.title,
        "notes": list(config.notes),
        "provenance": config.provenance.model_dump(),
        "statistics": {**config.statistics.model_dump(), "min_identities": config.min_identities},
        "subject": None,
        "thresholds": {},
        "overall": {},
        "det": None,
        "groupings": [],
        "against": None,
        "training": None,
        "conditions": [],
    }
    if config.training.record is not None:
        report["training"] = training_section(config, progress)
    values: list[Value] = []
    if config.embeddings is not None or config.scores is not None:
        inputs = open_inputs(config)
        report["notes"] += inputs.notes
        report["subject"] = inputs.summary
        values = _measured(config, inputs, report, progress)
    report["conditions"] = [_decided(condition, values) for condition in conditions]
    return AuditReport.build(report)


@dataclass(frozen=True, eq=False)
class Searched:
    """What became of searches: rank 1, and both halves of the open-set searches; None of a scores file."""

    first: SearchOutcomes
    strangers: OpenSetSearches


def _measured(config: AuditConfig, inputs: AuditInputs, report: dict[str, Any], progress: ProgressFn) -> list[Value]:
    """Fills the report's measured sections; returns every disparity in it."""
    subject = inputs.subject
    searched = None
    if subject.embedded is not None:
        searched = _search(subject, inputs, config.statistics.seed, progress)
    thresholds = choose_thresholds(
        config, inputs, None if searched is None else nonmated_max_scores(searched.strangers)
    )
    report["thresholds"] = {use: threshold_section(threshold) for use, threshold in thresholds.items()}
    events = _events(subject, searched, thresholds)
    columns = {**inputs.columns, EVERYONE: ["all"] * len(subject.identities)}
    found: dict[tuple[str, ...], GroupingResult] = {}
    groupings = ((EVERYONE,), *inputs.groupings)
    for by in track(groupings, "counting by group", len(groupings), progress):
        found[by] = _measure(config, subject, columns, by, thresholds["pairs"].score, events)
    everyone = found.pop((EVERYONE,))
    report["overall"] = {
        metric: rate(table.rows[0], interval_kind(metric), table.level) for metric, table in everyone.tables.items()
    }
    report["det"] = det(everyone.histograms.overall)
    contrasts = _adjusted(found)
    findings = {by: grouping_disparities(measured, config.statistics) for by, measured in found.items()}
    wanted = thresholds["pairs"].wanted if thresholds["pairs"].kind == "fmr" else None
    report["groupings"] = [
        grouping_section(measured, findings[by], contrasts[by], wanted) for by, measured in found.items()
    ]
    if inputs.against is not None:
        other = _search(inputs.against, inputs, config.statistics.seed, relabel(progress, "searching, other model"))
        report["against"] = compare_models(config, inputs, searched.first, other.first, found)
    return [one.value for several in findings.values() for one in several]


def _search(subject: AuditedSet, inputs: AuditInputs, seed: int, progress: ProgressFn) -> Searched:
    gallery = inputs.gallery if subject is inputs.subject else inputs.against_gallery
    first = rank1_outcomes(subject.embedded, gallery, progress)
    return Searched(first, half_gallery_searches(subject.embedded, gallery, seed, progress))


def _events(
    subject: AuditedSet, searched: Searched | None, thresholds: Mapping[str, DecisionThreshold]
) -> dict[str, SearchOutcomes]:
    if searched is None:
        return {}
    images = int(subject.enrolled_N.sum())
    fnir, fpir = fnir_fpir_outcomes(searched.strangers, thresholds["searches"].score, images)
    return {"rank1": searched.first, "fnir": fnir, "fpir": fpir}


def _measure(
    config: AuditConfig, subject: AuditedSet, columns: AttributeColumns, by, threshold: float, events
) -> GroupingResult:
    return measure_grouping(subject, columns, by, threshold, events, config.statistics, config.min_identities)


def _adjusted(found: Mapping[tuple[str, ...], GroupingResult]) -> dict[tuple[str, ...], list[Contrast]]:
    """Holm's adjustment over every test of the report, and the contrasts by grouping again."""
    everything = holm_adjust_contrasts([one for measured in found.values() for one in measured.contrasts])
    return {by: [one for one in everything if one.by == by] for by in found}


def _decided(condition: FailCondition, values: list[Value]) -> dict[str, Any]:
    """A condition held against the figures; what cannot be decided says so, and the audit is not lost for it."""
    try:
        reasons, undecided = condition.reasons(values), None
    except UserError as error:
        reasons, undecided = [], str(error)
    return {"text": condition.text, "failed": bool(reasons), "reasons": reasons, "undecided": undecided}
