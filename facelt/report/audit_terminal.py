"""Audit report on the terminal: a table of rates per grouping, the largest gaps, the training set."""

from typing import TYPE_CHECKING

from facelt.report.audit_schema import AgainstGrouping, AuditGrouping, AuditRate, AuditReport, TrainingGrouping
from facelt.report.audit_text import (
    DISPARITY_NAMES,
    METRICS,
    capitalized,
    disparity_interval,
    disparity_text,
    group_name,
    largest_gaps,
    significance_text,
    threshold_text,
)
from facelt.report.formatting import p_value, small_percent, small_percent_interval
from facelt.report.terminal import label, make_table
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Metric name of the disparities of two metrics together.
_JOINT = "fmr_fnmr"


def print_audit(report: AuditReport, console: "Console | None" = None) -> None:
    """Prints rates by group in percent with their intervals, the largest gap of each metric, and the training counts.

    `console` is by default one on standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for grouping in report.groupings:
        console.print(_rates(grouping, report))
        for sentence in largest_gaps(grouping, report.statistics.level) if "shots" not in grouping.by else ():
            console.print(Text(sanitize(capitalized(sentence))))
        if grouping.disparities:
            console.print(_disparities(grouping))
            for sentence in _joint_disparities(grouping):
                console.print(Text(sanitize(sentence)))
    for grouping in report.against.groupings if report.against else ():
        console.print(_against(grouping, report.statistics.level))
    for grouping in report.training.groupings if report.training else ():
        console.print(_training(grouping))
    lines = [f"Threshold for {use}: {threshold_text(threshold)}." for use, threshold in report.thresholds.items()]
    for line in (*lines, *(f"Note: {note}" for note in report.notes)):
        console.print(Text(sanitize(line), style="dim"))


def _rates(grouping: AuditGrouping, report: AuditReport) -> "Table":
    metrics = [metric for metric in METRICS if metric in report.overall]
    table = make_table("group", (METRICS[name].short for name in metrics), title=f"By {' and '.join(grouping.by)}")
    rows = [("all", report.overall, False)]
    rows += [(group_name(group.group), group.rates, group.small) for group in grouping.groups]
    for name, rates, is_small in rows:
        heading = label(shorten(name), *(["too small"] if is_small else []), style="dim" if is_small else "bold")
        table.add_row(heading, *(_cell(rates[metric]) for metric in metrics))
    return table


def _disparities(grouping: AuditGrouping) -> "Table":
    """Returns the disparities of each metric but for those of two metrics together."""
    by_key = {(entry.metric, entry.figure): entry for entry in grouping.disparities if entry.metric != _JOINT}
    figures = [name for name in DISPARITY_NAMES if any(figure == name for _, figure in by_key)]
    headings = (DISPARITY_NAMES[name].lower().replace("geometric mean", "GM") for name in figures)
    table = make_table("", headings, title=f"Disparities by {' and '.join(grouping.by)}")
    for metric in dict.fromkeys(metric for metric, _ in by_key):
        entries = [by_key.get((metric, figure)) for figure in figures]
        cells = (entry and label(disparity_text(entry), disparity_interval(entry), style="") for entry in entries)
        table.add_row(label(METRICS[metric].short), *cells)
    return table


def _joint_disparities(grouping: AuditGrouping) -> list[str]:
    """Returns a sentence on the disparities of FMR and FNMR together, if there are any."""
    texts = [
        f"{DISPARITY_NAMES[entry.figure]} {disparity_text(entry)} ({disparity_interval(entry) or entry.note})"
        for entry in grouping.disparities
        if entry.metric == _JOINT
    ]
    return [f"{METRICS[_JOINT].short} together: {', '.join(texts)}."] if texts else []


def _cell(row: AuditRate | None) -> "Text":
    if row is None or row.rate is None:
        return label("-", style="")
    ends = small_percent_interval(row.low, row.high)
    return label(small_percent(row.rate), *([ends] if ends else []), style="")


def _against(grouping: AgainstGrouping, level: float) -> "Table":
    title = f"Rank 1 of the other model minus this one, by {' and '.join(grouping.by)}"
    table = make_table("group", ("this", "other", "difference", "p (Holm)"), title=title)
    for row in grouping.rows:
        difference = f"{small_percent(row.difference)}\n{small_percent_interval(row.adjusted_low, row.adjusted_high)}"
        # The smallest p-value that undecidable ones can reach is on the page.
        p = label(p_value(row.adjusted_p), significance_text(row, level).partition(":")[0], style="")
        name = shorten(group_name(row.group))
        table.add_row(label(name, style=""), small_percent(row.rate), small_percent(row.other_rate), difference, p)
    return table


def _training(grouping: TrainingGrouping) -> "Table":
    bands = list(grouping.groups[0].bands)
    title = f"Training images (identities) by {' and '.join(grouping.by)}"
    table = make_table("group", ("all", *bands), title=title)
    for group in grouping.groups:
        counts = [group, *(group.bands[band] for band in bands)]
        cells = (f"{part.images:,} ({part.identities:,})" for part in counts)
        table.add_row(label(shorten(group_name(group.group)), style=""), *cells)
    return table
