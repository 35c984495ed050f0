"""Audit report: CSV tables, plots of rates and error trade-offs by group, HTML page."""

from collections.abc import Iterator, Mapping, Sequence

from facelt.report import audit_text
from facelt.report.audit_schema import (
    AgainstRow,
    AuditGroup,
    AuditGrouping,
    AuditRate,
    AuditReport,
    ContrastEntry,
    DisparityEntry,
    TimeSummary,
)
from facelt.report.audit_text import DISPARITY_NAMES, METRICS, group_name
from facelt.report.drawing import MARKERS, PALETTE, Plot, Series, Style
from facelt.report.formatting import small_percent, small_percent_interval
from facelt.report.html_page import markup, render
from facelt.report.plots import TradeoffCurve, det_plot, dot_plot
from facelt.utils.tables import Table

# More DET curves than this are not distinguishable.
_MAX_CURVES = 8
_STYLE = Style(PALETTE[0], 0)
_RATE_KEYS = tuple(key for key in AuditRate.model_fields if key != "coverage")


def audit_tables(report: AuditReport) -> dict[str, Table]:
    """Returns the CSV tables by file name, in long form."""
    tables = {}
    if report.groupings:
        contrast_keys = [key for key in ContrastEntry.model_fields if key != "by"]
        disparity_keys = ("metric", "figure", "value", "low", "high", "at_least", "note")
        nested_keys = ("rates", "own_threshold", "scores", "seconds")
        group_keys = [key for key in AuditGroup.model_fields if key not in nested_keys]
        tables = {
            "rates.csv": _rates_table(report),
            "groups.csv": _long_table(report.groupings, "groups", group_keys),
            "across.csv": _long_table(report.groupings, "across", ("left", "right", *_RATE_KEYS)),
            "disparities.csv": _long_table(report.groupings, "disparities", disparity_keys),
            "contrasts.csv": _long_table(report.groupings, "contrasts", contrast_keys),
            "det.csv": _det_table(report),
        }
        if report.scores is not None:
            tables["scores.csv"] = _scores_table(report)
        if report.seconds is not None:
            timed = [(by, group, of_group.seconds) for by, group, of_group in _groups(report) if of_group.seconds]
            rows = [[by, group, *seconds.model_dump().values()] for by, group, seconds in timed]
            tables["seconds.csv"] = Table(("by", "group", *TimeSummary.model_fields), rows)
    if report.open_set:
        keys = ("wanted", "fnir", "fpir", "supported", "reason")
        rows = [[*(getattr(point, key) for key in keys)] for point in report.open_set]
        tables["open_set.csv"] = Table(keys, rows)
    if report.against is not None:
        keys = tuple(AgainstRow.model_fields)
        tables["against.csv"] = _long_table(report.against.groupings, "rows", keys)
    if report.training is not None:
        rows = [
            [" & ".join(grouping.by), group_name(group.group), band, counts.identities, counts.images]
            for grouping in report.training.groupings
            for group in grouping.groups
            for band, counts in {"all": group, **group.bands}.items()
        ]
        tables["training.csv"] = Table(("by", "group", "shots", "identities", "images"), rows)
    return tables


def _rates_table(report: AuditReport) -> Table:
    entries = [("", "", metric, rate) for metric, rate in report.overall.items()]
    for grouping in report.groupings:
        by = " & ".join(grouping.by)
        for group in grouping.groups:
            entries += [(by, group_name(group.group), metric, rate) for metric, rate in group.rates.items() if rate]
    rows = [[*labels, *(getattr(rate, key) for key in _RATE_KEYS)] for *labels, rate in entries]
    return Table(("by", "group", "metric", *_RATE_KEYS), rows)


def _groups(report: AuditReport) -> Iterator[tuple[str, str, AuditReport | AuditGroup]]:
    """Yields all people, with empty names, and each group of each grouping."""
    yield "", "", report
    for grouping in report.groupings:
        for group in grouping.groups:
            yield " & ".join(grouping.by), group_name(group.group), group


def _scores_table(report: AuditReport) -> Table:
    shares = list(report.scores["mated"].quantiles)
    rows = [
        [by, group, pairs, scores.pairs, scores.mean, scores.shift, *scores.quantiles.values()]
        for by, group, of_group in _groups(report)
        for pairs, scores in (of_group.scores or {}).items()
    ]
    return Table(("by", "group", "pairs", "count", "mean", "shift", *(f"quantile_{share}" for share in shares)), rows)


def _long_table(groupings: Sequence, part: str, keys: Sequence[str]) -> Table:
    rows = [
        [" & ".join(grouping.by), *(_table_cell(getattr(row, key)) for key in keys)]
        for grouping in groupings
        for row in getattr(grouping, part)
    ]
    return Table(("by", *keys), rows)


def _table_cell(value: object) -> object:
    return group_name(value) if isinstance(value, list) else value


def _det_table(report: AuditReport) -> Table:
    curves = [("", "", report.det)]
    curves += [
        (" & ".join(grouping.by), group_name(curve.group), curve)
        for grouping in report.groupings
        for curve in grouping.det
    ]
    rows = [
        [by, group, *point]
        for by, group, curve in curves
        for point in zip(curve.threshold, curve.fmr, curve.fnmr, strict=True)
    ]
    return Table(("by", "group", "threshold", "fmr", "fnmr"), rows)


def audit_page(report: AuditReport) -> str:
    """Returns the report as one HTML page."""
    level = report.statistics.level
    context = {
        "report": report,
        "text": audit_text,
        "metrics": [(name, METRICS[name]) for name in METRICS if name in report.overall],
        "groupings": [_grouping_context(grouping, report) for grouping in report.groupings],
        "headlines": [
            (" and ".join(grouping.by), audit_text.largest_gaps(grouping, level))
            for grouping in report.groupings
            if "shots" not in grouping.by
        ],
        "model_card": audit_text.model_card(report),
        "tests": sum(contrast.p is not None for grouping in report.groupings for contrast in grouping.contrasts),
        "has_gender": any("gender" in grouping.by for grouping in report.groupings),
    }
    return render("audit.html", context)


def _grouping_context(grouping: AuditGrouping, report: AuditReport) -> dict:
    """Returns what the template shows of one grouping."""
    groups = sorted(grouping.groups, key=lambda group: audit_text.group_order(grouping.by, group.group))
    names = [tuple(group.group) for group in groups]
    between = {(tuple(rate.left), tuple(rate.right)): rate for rate in grouping.across}
    metrics = dict.fromkeys(disparity.metric for disparity in grouping.disparities)
    used = {disparity.figure for disparity in grouping.disparities}
    return {
        "by": grouping.by,
        "name": " and ".join(grouping.by),
        "groups": groups,
        "contrasts": grouping.contrasts,
        "names": [group_name(group.group) for group in groups],
        "times": [(group_name(group.group), group.seconds) for group in groups],
        "matrix": [[between.get((a, b)) or between.get((b, a)) for b in names] for a in names],
        "disparity_columns": [figure for figure in DISPARITY_NAMES if figure in used],
        "disparity_rows": [(metric, _by_figure(grouping.disparities, metric)) for metric in metrics],
        "has_own_thresholds": any(group.own_threshold for group in groups),
        "plots": _grouping_plots(grouping, groups, report.overall, report.statistics.level),
    }


def _by_figure(disparities: Sequence[DisparityEntry], metric: str) -> dict[str, DisparityEntry]:
    return {disparity.figure: disparity for disparity in disparities if disparity.metric == metric}


def _grouping_plots(
    grouping: AuditGrouping, groups: Sequence[AuditGroup], overall: Mapping[str, AuditRate], level: float
) -> list[Plot]:
    """Returns a dot plot for each measured metric, then the DET curves of the groups that are large enough."""
    plots = [_rate_plot(grouping, groups, metric, overall[metric], level) for metric in METRICS if metric in overall]
    return [plot for plot in (*plots, _det_plot(grouping)) if plot is not None]


def _rate_plot(
    grouping: AuditGrouping, groups: Sequence[AuditGroup], name: str, overall: AuditRate, level: float
) -> Plot | None:
    rates = {
        f"{group_name(group.group)}{' *' if rate.small else ''}": rate
        for group in groups
        if (rate := group.rates[name]) is not None and rate.rate is not None
    }
    if not rates:
        return None
    metric = METRICS[name]
    spoken = "; ".join(f"{group} {_spoken_rate(rate)}" for group, rate in rates.items())
    columns = zip(*((row.rate, row.low, row.high) for row in rates.values()), strict=True)
    rate_low_high = ([None if value is None else 100 * value for value in column] for column in columns)
    series = Series(metric.short, *rate_low_high, style=_STYLE)
    svg = dot_plot(
        [series], list(rates), x_label=f"{metric.long}, {metric.short} (%)", fit_small_rates=True,
        reference=None if overall.rate is None else 100 * overall.rate,
        description=f"Dot plot of the {metric.long} by {' and '.join(grouping.by)}: {spoken}. "
        f"All: {small_percent(overall.rate)} percent.",
    )  # fmt: skip
    caption = f"Dots are rates, lines their {100 * level:g} % intervals; the dashed line is the rate over all people."
    if any(rate.small for rate in rates.values()):
        caption += " * too few people to be compared."
    data = tuple(
        (group, small_percent(rate.rate), small_percent_interval(rate.low, rate.high),
         f"{rate.events:,.0f} of {rate.trials:,.0f}")
        for group, rate in rates.items()
    )  # fmt: skip
    header = ("", f"{metric.short} (%)", "interval (%)", f"of {metric.trials}")
    return Plot(audit_text.capitalized(metric.long), caption, markup(svg), (series,), header, data)


def _spoken_rate(rate: AuditRate) -> str:
    ends = small_percent_interval(rate.low, rate.high)
    return f"{small_percent(rate.rate)} percent" + (f", interval {ends}" if ends else "")


def _det_plot(grouping: AuditGrouping) -> Plot | None:
    large = {tuple(group.group): group for group in grouping.groups if not group.small}
    curves = [curve for curve in grouping.det if curve.fmr and tuple(curve.group) in large]
    if not 0 < len(curves) <= _MAX_CURVES:
        return None
    drawn = []
    for index, curve in enumerate(curves):
        group = large[tuple(curve.group)]
        threshold, fmr = group.own_threshold, group.rates["fmr"]
        points = [(threshold.wanted, threshold.fnmr if threshold.supported else None)] if threshold else []
        style = Style(PALETTE[index % len(PALETTE)], index % len(MARKERS))
        supported_from = 30 / fmr.trials if fmr and fmr.trials else None
        drawn.append(TradeoffCurve(group_name(curve.group), curve.fmr, curve.fnmr, points, supported_from, style))
    return det_plot(drawn, title="Error trade-off of each group")
