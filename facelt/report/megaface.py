"""MegaFace report: table columns and rows, plots, CSV tables, HTML page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facelt.report import plots
from facelt.report.drawing import Plot, Series, Styles, assign_styles
from facelt.report.formatting import EN_DASH, percent
from facelt.report.html_page import markup, render
from facelt.report.megaface_comparison import comparison_table
from facelt.report.megaface_schema import (
    CmcCurve,
    ComparisonRow,
    GroupFigure,
    MegafaceReport,
    MegafaceRow,
    PairedFigure,
    SizeCurve,
)
from facelt.report.megaface_thresholds import (
    open_set_table,
    threshold_csv_tables,
    threshold_plots,
    verification_table,
)
from facelt.report.schema import PSEUDO_SHOT_BAND_NAMES
from facelt.utils.tables import Table

# The columns of the OLTR paper's Table 4, in its order; other groups follow.
_FIRST_COLUMNS = (
    ("shots", "many"), ("shots", "few"), ("shots", "one"), ("shots", "zero"),
    ("all", "full"), ("gender", "male"), ("gender", "female"),
)  # fmt: skip
_BUILT_IN_GROUPS = ("shots", "all", "gender")
_COUNTS = ("pairs", "probes", "identities")
_NOT_MEASURED = GroupFigure(name="", group="", rate=None, low=None, high=None, pairs=0, probes=0, identities=0)


@dataclass(frozen=True)
class RateColumn:
    """Column of the rate table: the figure `name` of `group` ('all', 'shots', 'gender' or an attribute's column)."""

    group: str
    name: str

    @property
    def title(self) -> str:
        """Heading: built-in names capitalised, attribute values unchanged."""
        return self.name.capitalize() if self.group in _BUILT_IN_GROUPS else self.name


@dataclass(frozen=True)
class RateRow:
    """Row of a table of rates or differences; `cells` holds each column's figure, None if the report has none."""

    model: str
    kind: str
    rank: int
    distractors: int
    cells: tuple[GroupFigure | PairedFigure | None, ...]


def rate_columns(report: MegafaceReport) -> tuple[RateColumn, ...]:
    """Returns the seven columns of Table 4, measured or not, then all others, those of one group together."""
    measured = ((figure.group, figure.name) for row in report.rows for figure in row.figures)
    keys = list(dict.fromkeys((*_FIRST_COLUMNS, *measured)))
    groups = list(dict.fromkeys(group for group, _ in keys))
    return tuple(RateColumn(*key) for key in sorted(keys, key=lambda key: groups.index(key[0])))


def rate_rows(rows: Sequence[MegafaceRow | ComparisonRow], columns: Sequence[RateColumn]) -> tuple[RateRow, ...]:
    """Returns rows of the report with their figures in the order of `columns`."""
    aligned = []
    for row in rows:
        figures = {(figure.group, figure.name): figure for figure in row.figures}
        cells = tuple(figures.get((column.group, column.name)) for column in columns)
        aligned.append(RateRow(row.model, row.kind, row.rank, row.distractors, cells))
    return tuple(aligned)


def headline_rows(rows: Sequence[RateRow]) -> tuple[RateRow, ...]:
    """Returns, for each model and kind, the row at the smallest rank and the most distractors."""
    best: dict[tuple[str, str], RateRow] = {}
    for row in rows:
        current = best.setdefault((row.model, row.kind), row)
        if (row.rank, -row.distractors) < (current.rank, -current.distractors):
            best[row.model, row.kind] = row
    return tuple(best.values())


def count_rows(rows: Sequence[RateRow]) -> list[tuple[str, tuple[GroupFigure | None, ...]]]:
    """Returns the counts of each column, once if all rows agree, else one (name, cells) per distinct set of counts.

    Shot bands differ between models whose shots are counted in their own training embeddings. A set of counts is named
    after the models or rows that share it.
    """
    shared: dict[tuple, list[RateRow]] = {}
    for row in rows:
        key = tuple(None if cell is None else tuple(getattr(cell, name) for name in _COUNTS) for cell in row.cells)
        shared.setdefault(key, []).append(row)
    if len(shared) == 1:
        return [("", sharing[0].cells) for sharing in shared.values()]
    total = Counter(row.model for row in rows)
    named = []
    for sharing in shared.values():
        complete = {model for model, number in Counter(row.model for row in sharing).items() if number == total[model]}
        names = dict.fromkeys(row.model if row.model in complete else f"{row.model} · {row.kind}" for row in sharing)
        named.append((", ".join(names), sharing[0].cells))
    return named


def megaface_tables(report: MegafaceReport) -> dict[str, Table]:
    """Returns the CSV tables by file name, in long form: all figures, curves and CMCs."""
    row_keys = ("model", "kind", "rank", "distractors")
    figure_keys = ("name", "group", "rate", "low", "high", *_COUNTS)
    figures = [
        [*(getattr(row, key) for key in row_keys), *(getattr(figure, key) for key in figure_keys)]
        for row in report.rows
        for figure in row.figures
    ]
    curves = [
        [curve.model, curve.kind, curve.rank, *point]
        for curve in report.curves
        for point in zip(curve.sizes, curve.rate, curve.low, curve.high, strict=True)
    ]
    cmc = [
        [curve.model, curve.kind, curve.distractors, *point]
        for curve in report.cmc
        for point in zip(curve.ranks, curve.rate, strict=True)
    ]
    return {
        "figures.csv": Table((*row_keys, *figure_keys), figures),
        "rate_by_size.csv": Table((*row_keys, "rate", "low", "high"), curves),
        "cmc.csv": Table(("model", "kind", "distractors", "rank", "rate"), cmc),
        **({"differences.csv": comparison_table(report.comparison)} if report.comparison else {}),
        **threshold_csv_tables(report),
    }


def megaface_page(report: MegafaceReport) -> str:
    """Returns the report as one HTML page."""
    columns = rate_columns(report)
    rows = rate_rows(report.rows, columns)
    headline = headline_rows(rows)
    sections = [section for section in (report.verification, report.open_set) if section]
    parts = [*report.rows, *report.curves, *report.cmc, *(rates for section in sections for rates in section.rates)]
    keys = [(part.model, part.kind) for part in parts]
    styles = assign_styles(keys)
    context = {
        "report": report,
        "columns": columns,
        "column_groups": _column_groups(columns),
        "rows": rows,
        "headline": headline,
        "full": columns.index(RateColumn("all", "full")),
        "count_rows": count_rows(rows),
        "several_searches": len({(row.rank, row.distractors) for row in rows}) > 1,
        "kinds": list(dict.fromkeys(kind for _, kind in keys)),
        "styles": styles,
        "differences": rate_rows(report.comparison.rows, columns) if report.comparison else (),
        "verification": verification_table(report, styles),
        "open_set": open_set_table(report, styles),
        "plots": [*_rate_plots(report, columns, headline, styles), *threshold_plots(report, styles)],
    }
    return render("megaface.html", context)


def _column_groups(columns: Sequence[RateColumn]) -> list[tuple[str, int]]:
    """Returns (heading, number of columns) of each group of neighbouring columns."""
    headings = {"shots": "Training shots", "all": "All", "gender": "Gender"}
    widths = Counter(column.group for column in columns)
    return [(headings.get(group, group), width) for group, width in widths.items()]


def _rate_plots(
    report: MegafaceReport, columns: Sequence[RateColumn], headline: Sequence[RateRow], styles: Styles
) -> list[Plot]:
    """Returns the plots that the report has numbers for, in the order of the page."""
    level = f"{100 * report.interval.level:.0f}\u00a0% intervals"
    drawn = []
    if report.curves:
        drawn.append(_size_plot(report.curves, level, styles))
    if report.cmc:
        drawn.append(_cmc_plot(report.cmc, styles))
    bands = [
        index
        for index, column in enumerate(columns)
        if column.group == "shots" and column.name in PSEUDO_SHOT_BAND_NAMES
    ]
    if _is_measured(headline, bands):
        drawn.append(_shots_plot(report, columns, headline, bands, level, styles))
    groups = [index for index, column in enumerate(columns) if column.group not in ("shots", "all")]
    if _is_measured(headline, groups):
        full = [index for index, column in enumerate(columns) if column.group == "all"]
        drawn.append(_group_plot(columns, headline, full + groups, level, styles))
    return drawn


def _is_measured(headline: Sequence[RateRow], indices: Sequence[int]) -> bool:
    cells = (row.cells[index] for row in headline for index in indices)
    return any(cell and cell.rate is not None for cell in cells)


def _size_plot(curves: Sequence[SizeCurve], level: str, styles: Styles) -> Plot:
    series = tuple(
        Series(
            _label(curve), _percents(curve.rate), _percents(curve.low), _percents(curve.high),
            curve.sizes, styles[curve.model, curve.kind],
        )
        for curve in curves
    )  # fmt: skip
    spoken = "; ".join(
        f"{_label(curve)} from {percent(curve.rate[0])} percent among {curve.sizes[0]:,} distractors "
        f"to {percent(curve.rate[-1])} among {curve.sizes[-1]:,}"
        for curve in curves
        if curve.sizes
    )
    svg = plots.line_plot(
        series, x_label="distractors in the gallery", y_label="rank-1 rate (%)", log_x=True,
        description=f"Line plot of the rank-1 rate against gallery size: {spoken}.",
    )  # fmt: skip
    sizes = sorted({size for curve in curves for size in curve.sizes})
    return Plot(
        "Rank-1 rate by gallery size", f"Number of distractors on a logarithmic axis; bands are {level}.", markup(svg),
        series, ("", *(f"{size:,}" for size in sizes)), _data(series, sizes),
    )  # fmt: skip


def _cmc_plot(curves: Sequence[CmcCurve], styles: Styles) -> Plot:
    series = tuple(
        Series(_label(curve), _percents(curve.rate), x=curve.ranks, style=styles[curve.model, curve.kind])
        for curve in curves
    )
    spoken = "; ".join(
        f"{_label(curve)} from {percent(curve.rate[0])} percent at rank {curve.ranks[0]} "
        f"to {percent(curve.rate[-1])} at rank {curve.ranks[-1]}"
        for curve in curves
        if curve.ranks
    )
    sizes = " and ".join(f"{size:,}" for size in sorted({curve.distractors for curve in curves}))
    svg = plots.line_plot(
        series, x_label="rank", y_label="mate found within this rank (%)",
        description=f"Line plot of the cumulative match characteristic among {sizes} distractors: {spoken}.",
    )  # fmt: skip
    ranks = sorted({rank for curve in curves for rank in curve.ranks})
    return Plot(
        "Cumulative match characteristic", f"Share of pairs whose mate is found within each rank, among {sizes} "
        "distractors.", markup(svg), series, ("", *map(str, ranks)), _data(series, ranks),
    )  # fmt: skip


def _shots_plot(
    report: MegafaceReport, columns: Sequence[RateColumn], headline: Sequence[RateRow], bands: Sequence[int],
    level: str, styles: Styles,
) -> Plot:  # fmt: skip
    series = _row_series(headline, bands, styles)
    limits = report.shots.bands
    names = [
        f"{columns[index].title} ({limits[columns[index].name]})" if columns[index].name in limits else
        columns[index].title for index in bands
    ]  # fmt: skip
    svg = plots.bar_plot(
        series, names, y_label="rank-1 rate (%)",
        description=f"Bar plot of the rank-1 rate by training shots: {_rates_text(series, names)}.",
    )  # fmt: skip
    caption = (
        f"By the number of training embeddings similar to the probe. Thin lines are {level}; a dash marks a band "
        "without probes."
    )
    return Plot("Rank-1 rate by training shots", caption, markup(svg), series, (), ())


def _group_plot(
    columns: Sequence[RateColumn], headline: Sequence[RateRow], indices: Sequence[int], level: str, styles: Styles
) -> Plot:
    series = _row_series(headline, indices, styles)
    names = [
        columns[index].title if columns[index].group in ("all", "gender") else
        f"{columns[index].group}: {columns[index].name}" for index in indices
    ]  # fmt: skip
    svg = plots.dot_plot(
        series, names, x_label="rank-1 rate (%)",
        description=f"Dot plot of the rank-1 rate by group: {_rates_text(series, names)}.",
    )  # fmt: skip
    caption = f"Dots are rates, lines are {level}. The axis does not start at 0."
    return Plot("Rank-1 rate by group", caption, markup(svg), series, (), ())


def _row_series(headline: Sequence[RateRow], indices: Sequence[int], styles: Styles) -> tuple[Series, ...]:
    series = []
    for row in headline:
        cells = [row.cells[index] or _NOT_MEASURED for index in indices]
        rate, low, high = (_percents([getattr(cell, key) for cell in cells]) for key in ("rate", "low", "high"))
        series.append(Series(_label(row), rate, low, high, style=styles[row.model, row.kind]))
    return tuple(series)


def _label(part: RateRow | SizeCurve | CmcCurve) -> str:
    return f"{part.model} · {part.kind}"


def _percents(fractions: Iterable[float | None]) -> list[float | None]:
    return [None if fraction is None else 100 * fraction for fraction in fractions]


def _rates_text(series: Sequence[Series], names: Sequence[str]) -> str:
    return "; ".join(
        f"{line.label}: "
        + ", ".join(f"{name} {'empty' if rate is None else f'{rate:.2f} percent'}" for name, rate in
                    zip(names, line.rate, strict=True))
        for line in series
    )  # fmt: skip


def _data(series: Sequence[Series], positions: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    """Returns the numbers of a line plot: one row per series, one column per position."""
    table = []
    for line in series:
        rate_at = dict(zip(line.x, line.rate, strict=True))
        cells = (rate_at.get(position) for position in positions)
        table.append((line.label, *(EN_DASH if rate is None else f"{rate:.2f}" for rate in cells)))
    return tuple(table)
