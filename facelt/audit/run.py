"""Audit of recognition errors by group: runs all measurements and builds the report (schema `facelt.audit/1`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facelt.audit.disparities import available_disparities, grouping_disparities
from facelt.audit.distributions import SECONDS, read_seconds, response_times, score_distributions, time_summary
from facelt.audit.features import FeatureSet
from facelt.audit.inputs import SHOTS, AuditInputs, open_inputs
from facelt.audit.measure import GroupingResult, choose_thresholds, measure_grouping, search_all, threshold_notes
from facelt.audit.model_comparison import compare_models
from facelt.audit.training_set import training_section
from facelt.config.audit import AuditConfig
from facelt.errors import UserError
from facelt.identification.error_rates import ScoreHistograms
from facelt.identification.open_set import open_set_rates
from facelt.report.audit_schema import AuditReport
from facelt.stats.comparisons import comparison_values, decide
from facelt.stats.disparity import DisparityEstimate
from facelt.stats.fail_conditions import FailCondition, parse_fail_condition
from facelt.stats.groups import GroupRate
from facelt.stats.intervals import measured_coverage
from facelt.utils.provenance import InputHash
from recordio_tools.progress import ProgressFn, no_progress, relabel, track

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame

# Level of the intervals whose coverage was measured.
_COVERAGE_LEVEL = 0.95
# Column of the grouping that has everyone in one group.
_EVERYONE = "(everyone)"


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Report of an audit, the measurements by the columns of each grouping, and the hashes of the inputs."""

    report: AuditReport
    groupings: Mapping[tuple[str, ...], GroupingResult]
    inputs: tuple[InputHash, ...]

    def metric_frame(self, metric: str, by: str | Sequence[str]) -> "MetricFrame":
        """Returns `rate`, `events` and `trials` of a metric by group as fairlearn's MetricFrame.

        `metric` is fmr, fnmr, rank1, fnir or fpir, `by` a column or the columns of an intersection. Raises UserError on
        one that was not measured.
        """
        by = (by,) if isinstance(by, str) else tuple(by)
        if by not in self.groupings:
            choices = ", ".join("+".join(columns) for columns in self.groupings) or "none"
            raise UserError(f"no grouping by {'+'.join(by)}: groupings of this audit are {choices}")
        tables = self.groupings[by].tables
        if metric not in tables:
            raise UserError(f"no metric {metric!r}: metrics of this audit are {', '.join(tables)}")
        return tables[metric].metric_frame()


def run_audit(
    config: AuditConfig,
    progress: ProgressFn = no_progress,
    *,
    features: FeatureSet | None = None,
    gallery: FeatureSet | None = None,
) -> AuditResult:
    """Runs an audit. All inputs are validated before any comparison; features and gallery may be in memory.

    Raises UserError naming the file, key, line or image at fault; before any input is read, a fail condition that
    cannot be parsed, or is about a figure, metric or grouping that such an audit does not have.
    """
    conditions = _fail_conditions(config)
    training, notes = training_section(config, progress) if config.training.record else (None, [])
    report: dict[str, Any] = {
        "title": config.title,
        "notes": [*config.notes, *notes],
        "provenance": config.provenance.model_dump(),
        "statistics": {**config.statistics.model_dump(), "min_identities": config.min_identities},
        "subject": None,
        "thresholds": {},
        "overall": {},
        "det": None,
        "open_set": None,
        "groupings": [],
        "against": None,
        "training": training,
    }
    files = training["files"].items() if training else ()
    hashes = [InputHash.of_file(Path(path), sha256) for path, sha256 in files]
    results: dict[tuple[str, ...], GroupingResult] = {}
    estimates: dict[tuple[str, ...], list[DisparityEstimate]] = {}
    if config.embeddings is not None or config.scores is not None:
        inputs = open_inputs(config, features, gallery)
        report["notes"] += inputs.notes
        hashes += inputs.hashes
        report["subject"] = inputs.summary
        audited, seed = inputs.audited, config.statistics.seed
        searches = search_all(audited.embeddings, inputs.gallery, seed, progress) if audited.embeddings else None
        thresholds = choose_thresholds(config, inputs, searches)
        outcomes = searches.outcomes(thresholds["searches"].score) if searches else {}
        columns = {_EVERYONE: ["all"] * len(audited.identities), **inputs.columns}
        groupings = ((_EVERYONE,), *inputs.groupings)
        for by in track(groupings, "counting by group", len(groupings), progress):
            by_columns = {name: columns[name] for name in by}
            settings = outcomes, config.statistics, config.min_identities
            results[by] = measure_grouping(audited, by_columns, thresholds["pairs"].score, *settings)
        everyone = results.pop((_EVERYONE,))
        estimates = {by: grouping_disparities(result, config.statistics) for by, result in results.items()}
        report["thresholds"] = {use: asdict(threshold) for use, threshold in thresholds.items()}
        highest_scores = {"pairs": everyone.histograms.overall.highest_score}
        if searches:
            highest_scores["searches"] = searches.highest_score
        is_cosine = audited.embeddings is not None and audited.embeddings.cosine
        report["notes"] += threshold_notes(thresholds, highest_scores, is_cosine=is_cosine)
        tables = everyone.tables.items()
        report["overall"] = {metric: _rate(table.rows[0], metric, table.level) for metric, table in tables}
        report["det"] = _det(everyone.histograms.overall)
        report["scores"] = score_distributions(everyone.histograms.overall, everyone.histograms.overall)
        if searches is not None:
            report["open_set"] = [point.report() for point in open_set_rates(searches.open_set).points]
        fmr = thresholds["pairs"].wanted if thresholds["pairs"].kind == "fmr" else None
        report["groupings"] = _grouping_sections(results, estimates, config.statistics.level, fmr)
        if SECONDS in inputs.columns and searches is not None:
            _add_response_times(report, inputs)
        if inputs.against is not None:
            progress = relabel(progress, "searching, other model")
            other_searches = search_all(inputs.against.embeddings, inputs.against_gallery, seed, progress)
            report["against"] = compare_models(config, inputs, searches.rank1, other_searches.rank1, results)
    every_estimate = [estimate for of_grouping in estimates.values() for estimate in of_grouping]
    report["conditions"] = [
        {"text": condition.text, **asdict(condition.evaluate(every_estimate))} for condition in conditions
    ]
    return AuditResult(AuditReport.build(report), results, tuple(hashes))


def _fail_conditions(config: AuditConfig) -> list[FailCondition]:
    """Returns the parsed conditions, checked against the figures and groupings of this audit."""
    conditions = [parse_fail_condition(text) for text in config.fail_if]
    metrics = ("rank1", "fnir", "fpir") if config.embeddings is not None else ()
    metrics += ("fmr", "fnmr") if config.embeddings is not None or config.scores is not None else ()
    # The embeddings may have a column of shots themselves.
    groupings = dict.fromkeys([*config.by, *((*by, SHOTS) for by in config.by if config.embeddings is not None)])
    for condition in conditions:
        condition.check(available_disparities(metrics) if metrics else (), groupings)
    return conditions


def _grouping_sections(
    results: Mapping[tuple[str, ...], GroupingResult],
    estimates: Mapping[tuple[str, ...], list[DisparityEstimate]],
    level: float,
    fmr: float | None,
) -> list[dict[str, Any]]:
    """Returns the report's groupings; `fmr` is that of the groups' own thresholds, None to leave them out."""
    contrasts = [contrast for result in results.values() for contrast in result.contrasts]
    verdicts = decide([contrast.pair for contrast in contrasts], level=level)
    rows = [comparison_values(contrast, verdict) for contrast, verdict in zip(contrasts, verdicts, strict=True)]
    return [
        _grouping_section(result, estimates[by], [row for row in rows if row["by"] == by], fmr)
        for by, result in results.items()
    ]


def _grouping_section(
    result: GroupingResult, estimates: Iterable[DisparityEstimate], contrasts: list[dict[str, Any]], fmr: float | None
) -> dict[str, Any]:
    level = result.across.level
    rows = {metric: {row.group: row for row in table.rows} for metric, table in result.tables.items()}
    histograms = {name: result.histograms.within(g) for g, name in enumerate(result.grouping.names)}
    return {
        "by": list(result.grouping.by),
        "groups": [
            {
                **asdict(size),
                "rates": {
                    metric: _rate(of_metric.get(size.group), metric, level) for metric, of_metric in rows.items()
                },
                "own_threshold": _own_threshold(histograms.get(size.group), fmr),
                "scores": _scores(histograms.get(size.group), result.histograms.overall),
            }
            for size in result.sizes
        ],
        "across": [_across_rate(row, len(result.grouping.by), level) for row in result.across.rows],
        "det": [{"group": list(name), **_det(of_group)} for name, of_group in histograms.items()],
        "disparities": [asdict(estimate) for estimate in estimates],
        "contrasts": contrasts,
    }


def _scores(histograms: ScoreHistograms | None, overall: ScoreHistograms) -> dict[str, Any] | None:
    return None if histograms is None else score_distributions(histograms, overall)


def _add_response_times(report: dict[str, Any], inputs: AuditInputs) -> None:
    second_N = read_seconds(inputs.columns[SECONDS])
    if np.isnan(second_N).all():
        return
    report["seconds"] = time_summary(second_N[~np.isnan(second_N)])
    for grouping in report["groupings"]:
        columns = {name: inputs.columns[name] for name in grouping["by"]}
        times = response_times(inputs.audited.identities, columns, second_N)
        for group in grouping["groups"]:
            group["seconds"] = times.get(tuple(group["group"]))


def _across_rate(row: GroupRate, columns: int, level: float) -> dict[str, Any]:
    left, right = list(row.group[:columns]), list(row.group[columns:])
    return {"left": left, "right": right, **_rate(row, "fmr", level, is_across=left != right)}


def _rate(row: GroupRate | None, metric: str, level: float, is_across: bool = False) -> dict[str, Any] | None:
    """Returns a rate with its limits and counts, and the measured coverage of such limits."""
    if row is None:
        return None
    # Non-mated pairs involve two identities, all other trials one.
    kind = "search" if metric != "fmr" else "pair_across" if is_across else "pair"
    coverage = measured_coverage(kind, row.identities) if level == _COVERAGE_LEVEL else None
    values = {key: value for key, value in asdict(row).items() if key != "group"}
    return {**values, "coverage": None if coverage is None else asdict(coverage)}


def _det(histograms: ScoreHistograms) -> dict[str, list[float]]:
    curve = histograms.det()
    return {"fmr": curve.fmr_T.tolist(), "fnmr": curve.fnmr_T.tolist(), "threshold": curve.threshold_T.tolist()}


def _own_threshold(histograms: ScoreHistograms | None, fmr: float | None) -> dict[str, Any] | None:
    """Returns the error rates of a group at a threshold set for it alone."""
    if histograms is None or fmr is None:
        return None
    point = histograms.point(fmr)
    keys = ("wanted", "threshold", "fmr", "fnmr", "supported", "reason")
    return {key: getattr(point, key) for key in keys}
