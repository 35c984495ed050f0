"""The four plots of a MegaFace report, each with the words that stand beside it and that a screen reader says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from facelt.report import plots
from facelt.report.page import NOTHING, markup, percent
from facelt.report.series import Series

if TYPE_CHECKING:
    from facelt.report.megaface import Column, Row

_BANDS = ("many", "few", "one", "zero")


@dataclass(frozen=True)
class Figure:
    """A plot for the page: `svg` is safe markup, `data` the numbers behind it as (header, rows of text)."""

    title: str
    caption: str
    svg: str
    series: tuple[Series, ...]
    header: tuple[str, ...]
    data: tuple[tuple[str, ...], ...]


def figures(report: dict, columns: Sequence["Column"], headline: Sequence["Row"], styles: Mapping) -> list[Figure]:
    """The plots that the report has numbers for, in the order of the page."""
    level = f"{100 * report['interval']['level']:.0f}\u00a0% intervals"
    drawn = []
    if report["curves"]:
        drawn.append(_size_plot(report["curves"], level, styles))
    if report["cmc"]:
        drawn.append(_cmc_plot(report["cmc"], styles))
    bands = [index for index, column in enumerate(columns) if column.group == "shots" and column.name in _BANDS]
    if _measured(headline, bands):
        drawn.append(_shots_plot(report, columns, headline, bands, level, styles))
    groups = [index for index, column in enumerate(columns) if column.group not in ("shots", "all")]
    if _measured(headline, groups):
        whole = [index for index, column in enumerate(columns) if column.group == "all"]
        drawn.append(_group_plot(columns, headline, whole + groups, level, styles))
    return drawn


def _size_plot(curves: Sequence[dict], level: str, styles: Mapping) -> Figure:
    series = tuple(
        Series(
            _label(curve), _percents(curve["rate"]), _percents(curve["low"]), _percents(curve["high"]),
            curve["sizes"], styles[curve["model"], curve["kind"]],
        )
        for curve in curves
    )  # fmt: skip
    spoken = "; ".join(
        f"{_label(curve)} from {percent(curve['rate'][0])} percent among {curve['sizes'][0]:,} distractors "
        f"to {percent(curve['rate'][-1])} among {curve['sizes'][-1]:,}"
        for curve in curves
        if curve["sizes"]
    )
    svg = plots.line_plot(
        series, x_label="distractors in the gallery", y_label="rank-1 rate (%)", log_x=True,
        description=f"Line plot of the rank-1 rate against gallery size: {spoken}.",
    )  # fmt: skip
    sizes = sorted({size for curve in curves for size in curve["sizes"]})
    return Figure(
        "Rank-1 rate against gallery size", f"Logarithmic axis of distractors; bands are {level}.", markup(svg),
        series, ("", *(f"{size:,}" for size in sizes)), _data(series, sizes),
    )  # fmt: skip


def _cmc_plot(curves: Sequence[dict], styles: Mapping) -> Figure:
    series = tuple(
        Series(_label(curve), _percents(curve["rate"]), x=curve["ranks"], style=styles[curve["model"], curve["kind"]])
        for curve in curves
    )
    sizes = sorted({curve["distractors"] for curve in curves})
    spoken = "; ".join(
        f"{_label(curve)} from {percent(curve['rate'][0])} percent at rank {curve['ranks'][0]} "
        f"to {percent(curve['rate'][-1])} at rank {curve['ranks'][-1]}"
        for curve in curves
        if curve["ranks"]
    )
    among = " and ".join(f"{size:,}" for size in sizes)
    svg = plots.line_plot(
        series, x_label="rank", y_label="mate found within this rank (%)",
        description=f"Line plot of the cumulative match characteristic among {among} distractors: {spoken}.",
    )  # fmt: skip
    ranks = sorted({rank for curve in curves for rank in curve["ranks"]})
    return Figure(
        "Cumulative match characteristic", f"How often the mate is within the first so many answers, among {among} "
        "distractors.", markup(svg), series, ("", *(str(rank) for rank in ranks)),
        _data(series, ranks),
    )  # fmt: skip


def _shots_plot(report: dict, columns, headline, bands: Sequence[int], level: str, styles: Mapping) -> Figure:
    series = _row_series(headline, bands, styles)
    meaning = report["shots"]["bands"]
    names = [
        f"{columns[index].title} ({meaning[columns[index].name]})" if columns[index].name in meaning else
        columns[index].title for index in bands
    ]  # fmt: skip
    svg = plots.bar_plot(
        series, names, y_label="rank-1 rate (%)",
        description=f"Bar plot of the rank-1 rate by training shots: {_spoken(series, names)}.",
    )  # fmt: skip
    caption = (
        f"By how many training embeddings resemble the probe; thin lines are {level}, a dash is a band without a probe."
    )
    return Figure("Rank-1 rate by training shots", caption, markup(svg), series, (), ())


def _group_plot(columns, headline, shown: Sequence[int], level: str, styles: Mapping) -> Figure:
    series = _row_series(headline, shown, styles)
    names = [
        columns[index].title if columns[index].group in ("all", "gender") else
        f"{columns[index].group}: {columns[index].name}" for index in shown
    ]  # fmt: skip
    svg = plots.dot_plot(
        series, names, x_label="rank-1 rate (%)",
        description=f"Dot plot of the rank-1 rate by group: {_spoken(series, names)}.",
    )  # fmt: skip
    caption = f"Dots are rates, lines are {level}. The axis does not begin at 0."
    return Figure("Rank-1 rate by group", caption, markup(svg), series, (), ())


def _row_series(headline: Sequence["Row"], shown: Sequence[int], styles: Mapping) -> tuple[Series, ...]:
    found = []
    for row in headline:
        cells = [row.cells[index] or {"rate": None, "low": None, "high": None} for index in shown]
        rate, low, high = (_percents([cell[key] for cell in cells]) for key in ("rate", "low", "high"))
        found.append(Series(f"{row.model} · {row.kind}", rate, low, high, style=styles[row.model, row.kind]))
    return tuple(found)


def _measured(headline: Sequence["Row"], shown: Sequence[int]) -> bool:
    return any(row.cells[index] and row.cells[index]["rate"] is not None for row in headline for index in shown)


def _label(part: dict) -> str:
    return f"{part['model']} · {part['kind']}"


def _percents(fractions: Sequence[float | None]) -> list[float | None]:
    return [None if fraction is None else 100 * fraction for fraction in fractions]


def _spoken(series: Sequence[Series], names: Sequence[str]) -> str:
    return "; ".join(
        f"{one.label}: "
        + ", ".join(f"{name} {'empty' if rate is None else f'{rate:.2f} percent'}" for name, rate in
                    zip(names, one.rate, strict=True))
        for one in series
    )  # fmt: skip


def _data(series: Sequence[Series], places: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    """The numbers of a line plot: a row a series, a column a place."""
    table = []
    for one in series:
        at = dict(zip(one.x, one.rate, strict=True))
        table.append((one.label, *(NOTHING if at.get(place) is None else f"{at[place]:.2f}" for place in places)))
    return tuple(table)
