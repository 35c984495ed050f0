"""MegaFace report on the terminal: tables of rates and differences, verification, open-set identification, notes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from facelt.report.formatting import percent, percent_interval, rate_name
from facelt.report.megaface import RateColumn, RateRow, count_rows, rate_columns, rate_rows
from facelt.report.megaface_schema import GroupFigure, MegafaceReport, PairedFigure
from facelt.report.megaface_thresholds import ThresholdCell, ThresholdTable, open_set_table, verification_table
from facelt.report.terminal import difference_label, label, make_table
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_LABEL_WIDTH = 20
_CELL_WIDTH = 12
# Of an interval with two signs: -12.1 to -10.9.
_DIFFERENCE_WIDTH = 14
# From this width on there is room for the interval of each of the seven columns, not of the full rate alone.
_WIDE = 100
_WIDE_DIFFERENCES = 115


def print_megaface(report: MegafaceReport, console: "Console | None" = None) -> None:
    """Prints the rates in percent and the differences to the reference, then the rates at thresholds.

    Each has a table of the columns of the paper's Table 4 and one per other group. `console` is by default one on
    standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    columns = rate_columns(report)
    rows = rate_rows(report.rows, columns)
    selections = list(_column_selections(columns, console.width))
    for group, indices in selections:
        has_intervals = bool(group) or console.width >= _WIDE
        console.print(_rate_table(columns, rows, indices, group or report.title, has_intervals))
    if report.comparison:
        differences = rate_rows(report.comparison.rows, columns)
        for group, indices in selections:
            title = f"Points above or below {report.comparison.reference} {report.comparison.kind}"
            title += f", by {group}" if group else ""
            cell = partial(_difference_cell, every_interval=bool(group) or console.width >= _WIDE_DIFFERENCES)
            console.print(_figure_table(columns, differences, indices, title, cell, _DIFFERENCE_WIDTH))
        for row in report.comparison.rows:
            console.print(Text(sanitize(row.sentence)))
        console.print()
    tables = [table for table in (verification_table(report), open_set_table(report)) if table]
    for table in tables:
        console.print(_threshold_table(table))
    lines = [
        _rate_legend(report),
        *_difference_legend(report),
        *_threshold_legend(report, tables),
        *(f"Note: {note}" for note in report.notes),
    ]
    console.print(Text("\n".join(map(sanitize, lines))), style="dim")


def _column_selections(columns: Sequence[RateColumn], width: int) -> Iterator[tuple[str, list[int]]]:
    """Yields the columns of each table by index, with their group: Table 4 (no group), then the other groups."""
    built_in = ("shots", "all", "gender")
    yield "", [index for index, column in enumerate(columns) if column.group in built_in]
    per_table = max(1, (width - _LABEL_WIDTH) // (_CELL_WIDTH + 1))
    for group in dict.fromkeys(column.group for column in columns if column.group not in built_in):
        indices = [index for index, column in enumerate(columns) if column.group == group]
        for start in range(0, len(indices), per_table):
            yield group, indices[start : start + per_table]


def _rate_table(
    columns: Sequence[RateColumn], rows: Sequence[RateRow], indices: list[int], title: str, every_interval: bool
) -> "Table":
    from rich.text import Text

    table = _figure_table(
        columns, rows, indices, title, partial(_rate_cell, every_interval=every_interval), _CELL_WIDTH
    )
    table.add_section()
    selected = [replace(row, cells=tuple(row.cells[index] for index in indices)) for row in rows]
    for name, cells in count_rows(selected):
        counts = (Text(_short_count(cell.pairs) if cell else "-", style="dim") for cell in cells)
        table.add_row(label("pairs" + (f" ({name})" if name else ""), style="dim"), *counts)
    return table


def _figure_table(
    columns: Sequence[RateColumn],
    rows: Sequence[RateRow],
    indices: list[int],
    title: str,
    cell: Callable[..., "Text"],
    cell_width: int,
) -> "Table":
    titles = [shorten(columns[index].title) for index in indices]
    table = make_table("model\nkind", titles, title=title, label_width=_LABEL_WIDTH, cell_width=cell_width)
    several_searches = len({(row.rank, row.distractors) for row in rows}) > 1
    for row in rows:
        search = [f"rank {row.rank}, {row.distractors:,}"] if several_searches else []
        cells = (cell(row.cells[index], columns[index].group == "all") for index in indices)
        table.add_row(label(row.model, row.kind, *search), *cells)
    return table


def _difference_cell(cell: PairedFigure | None, is_full: bool, every_interval: bool) -> "Text":
    return difference_label(cell, with_interval=is_full or every_interval)


def _rate_cell(cell: GroupFigure | None, is_full: bool, every_interval: bool) -> "Text":
    if cell is None or cell.rate is None:
        return label("-", style="")
    ends = percent_interval(cell.low, cell.high) if is_full or every_interval else ""
    return label(percent(cell.rate), *([ends] if ends else []), style="bold" if is_full else "")


def _short_count(number: int) -> str:
    """Returns a count in at most six characters, so that seven columns fit in 80; page and CSV show it in full."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1000:.0f}k" if number < 1_000_000 else f"{number / 1_000_000:.2f}M"


def _threshold_table(rates: ThresholdTable) -> "Table":
    """Returns one row per model, kind and score, one column per false-alarm rate; a star marks uncertain rates."""
    title = f"{rates.title}: {rates.rate} in % at {rates.alarm}"
    columns = [*map(rate_name, rates.alarm_rates), "seconds"]
    table = make_table("model\nkind", columns, title=title, label_width=_LABEL_WIDTH)
    for row in rates.rows:
        name = label(row.model, row.kind, *([row.score] if row.score else []))
        table.add_row(name, *map(_threshold_cell, row.cells), f"{row.seconds:.1f}")
    return table


def _threshold_cell(cell: ThresholdCell) -> str:
    return "-" if cell.rate is None else percent(cell.rate) + ("*" if cell.doubt else "")


def _rate_legend(report: MegafaceReport) -> str:
    suite, shots, interval = report.suite, report.shots, report.interval
    ranks = ", ".join(map(str, sorted({row.rank for row in report.rows})))
    sizes = ", ".join(f"{size:,}" for size in sorted({row.distractors for row in report.rows}))
    bands = ", ".join(f"{name} {limits}" for name, limits in shots.bands.items())
    return (
        f"Rates in % at rank {ranks} among {sizes} distractors; {suite.probes:,} probes of {suite.identities:,} "
        f"identities; noise mode {suite.noise.mode}. "
        f"Below a rate: its {100 * interval.level:.0f} % interval ({interval.method}). "
        f"Shots: training embeddings more similar than {shots.threshold:g}; {bands}; reference {shots.reference}."
    )


def _difference_legend(report: MegafaceReport) -> list[str]:
    if report.comparison is None:
        return []
    comparison, level = report.comparison, report.interval.level
    shots = f" Shots: bands of {comparison.shots} for both." if comparison.shots else ""
    return [
        f"Differences in points over the same probes; {100 * level:.0f} % intervals over identities and p, both "
        f"adjusted by Holm's method over {comparison.tests:,} tests. A star: decided, the adjusted interval excludes 0 "
        f"and so p is below {1 - level:.2g}.{shots}"
    ]


def _threshold_legend(report: MegafaceReport, tables: Sequence[ThresholdTable]) -> list[str]:
    """Returns the numbers of pairs and searches, and the reasons for uncertain or missing rates."""
    lines = []
    if section := report.verification:
        lines.append(
            f"TAR: {section.mated:,} mated and {section.nonmated:,} non-mated pairs; "
            f"{section.distractors:,} distractors."
        )
    if section := report.open_set:
        galleries, mated, nonmated = (
            " and ".join(f"{getattr(half, key):,}" for half in section.halves)
            for key in ("gallery", "mated", "nonmated")
        )
        lines.append(
            f"FNIR: rank {section.rank}, mean of two halves; galleries of {galleries} images, {mated} mated and "
            f"{nonmated} non-mated searches; enrolment: {section.enrolment} (seed {section.seed})."
        )
    if any(table.is_uncertain for table in tables):
        lines.append("* uncertain: too few pairs or searches for 30 errors at this rate.")
    return lines + [f"- {reason}." for table in tables for reason in table.reasons]
