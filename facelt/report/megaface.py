"""The four plots of a MegaFace report, each with the words that stand beside it and that a screen reader says.

The view of a MegaFace report (schema `facelt.megaface/1`): its columns and rows, its CSV tables and its page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facelt.report import megaface_thresholds, plots
from facelt.report.drawing import Plot, Series, assign_styles
from facelt.report.html_page import EN_DASH, markup, percent, render
from facelt.utils.tables import Table

_BANDS = ("many", "few", "one", "zero")


def figures(report: dict, columns: Sequence["Column"], headline: Sequence["Row"], styles: Mapping) -> list[Plot]:
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


def _size_plot(curves: Sequence[dict], level: str, styles: Mapping) -> Plot:
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
    return Plot(
        "Rank-1 rate against gallery size", f"Logarithmic axis of distractors; bands are {level}.", markup(svg),
        series, ("", *(f"{size:,}" for size in sizes)), _data(series, sizes),
    )  # fmt: skip


def _cmc_plot(curves: Sequence[dict], styles: Mapping) -> Plot:
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
    return Plot(
        "Cumulative match characteristic", f"How often the mate is within the first so many answers, among {among} "
        "distractors.", markup(svg), series, ("", *(str(rank) for rank in ranks)),
        _data(series, ranks),
    )  # fmt: skip


def _shots_plot(report: dict, columns, headline, bands: Sequence[int], level: str, styles: Mapping) -> Plot:
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
    return Plot("Rank-1 rate by training shots", caption, markup(svg), series, (), ())


def _group_plot(columns, headline, shown: Sequence[int], level: str, styles: Mapping) -> Plot:
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
    return Plot("Rank-1 rate by group", caption, markup(svg), series, (), ())


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
        table.append((one.label, *(EN_DASH if at.get(place) is None else f"{at[place]:.2f}" for place in places)))
    return tuple(table)


SCHEMA = "facelt.megaface/1"

# The columns of the OLTR paper's Table 4, in its order; what else was measured follows.
_FIRST_COLUMNS = (
    ("shots", "many"), ("shots", "few"), ("shots", "one"), ("shots", "zero"),
    ("all", "full"), ("gender", "male"), ("gender", "female"),
)  # fmt: skip
_OWN_NAMES = ("shots", "all", "gender")
_COUNTS = ("pairs", "probes", "identities")
_ROW_KEYS = ("model", "kind", "rank", "distractors", "figures")
_FIGURE_KEYS = ("name", "group", "rate", "low", "high", *_COUNTS)
_REQUIRED = {
    "": ("title", "notes", "suite", "shots", "interval", "rows", "curves", "cmc", "models"),
    "suite": ("probes", "identities", "pairs", "distractors", "sizes", "sets", "noise", "files"),
    "shots": ("threshold", "reference", "bands"),
    "interval": ("level", "method", "replicates", "seed"),
}


@dataclass(frozen=True)
class Column:
    """One column: the figure `name` of `group` ('all', 'shots', 'gender' or an attribute's column)."""

    group: str
    name: str

    @property
    def title(self) -> str:
        """The heading: facelt's own names with a capital, an attribute's values as they are."""
        return self.name.capitalize() if self.group in _OWN_NAMES else self.name


@dataclass(frozen=True)
class Row:
    """One model and kind at one rank and gallery size; `cells` holds each column's figure, None where it is absent."""

    model: str
    kind: str
    rank: int
    distractors: int
    cells: tuple[dict | None, ...]


def check(report: dict) -> None:
    """Raise ValueError, naming the key, where the report lacks what schema `facelt.megaface/1` asks for."""
    for place, keys in _REQUIRED.items():
        _require(report[place] if place else report, keys, place or "report")
    for index, row in enumerate(report["rows"]):
        _require(row, _ROW_KEYS, f"rows[{index}]")
        for number, figure in enumerate(row["figures"]):
            _require(figure, _FIGURE_KEYS, f"rows[{index}].figures[{number}]")
    for name, (keys, rate_keys) in megaface_thresholds.REQUIRED.items():
        if section := report.get(name):
            _require(section, keys, name)
            for index, rate in enumerate(section["rates"]):
                _require(rate, rate_keys, f"{name}.rates[{index}]")


def columns(report: dict) -> tuple[Column, ...]:
    """Table 4's seven columns, measured or not, then the others as they come, those of one group side by side."""
    measured = ((figure["group"], figure["name"]) for row in report["rows"] for figure in row["figures"])
    keys = list(dict.fromkeys((*_FIRST_COLUMNS, *measured)))
    groups = list(dict.fromkeys(group for group, _ in keys))
    return tuple(Column(*key) for key in sorted(keys, key=lambda key: groups.index(key[0])))


def rows(report: dict, shown: Sequence[Column]) -> tuple[Row, ...]:
    """The report's rows with their figures in the order of the columns `shown`."""
    found = []
    for row in report["rows"]:
        figures = {(figure["group"], figure["name"]): figure for figure in row["figures"]}
        cells = tuple(figures.get((column.group, column.name)) for column in shown)
        found.append(Row(row["model"], row["kind"], row["rank"], row["distractors"], cells))
    return tuple(found)


def headline_rows(all_rows: Sequence[Row]) -> tuple[Row, ...]:
    """Of each model and kind the row at the smallest rank and the most distractors."""
    best: dict[tuple[str, str], Row] = {}
    for row in all_rows:
        kept = best.get((row.model, row.kind))
        if kept is None or (row.rank, -row.distractors) < (kept.rank, -kept.distractors):
            best[row.model, row.kind] = row
    return tuple(best.values())


def count_rows(all_rows: Sequence[Row]) -> list[tuple[str, tuple[dict | None, ...]]]:
    """What stands below a table: the counts of each column, once where every row counts the same.

    Shot bands differ between models that are each scored by their own training embeddings; then each distinct set of
    counts is named by the rows that share it.
    """
    shared: dict[tuple, list[Row]] = {}
    for row in all_rows:
        key = tuple(None if cell is None else tuple(cell[name] for name in _COUNTS) for cell in row.cells)
        shared.setdefault(key, []).append(row)
    if len(shared) == 1:
        return [("", group[0].cells) for group in shared.values()]
    rows_of = Counter(row.model for row in all_rows)
    named = []
    for group in shared.values():
        whole = {model for model, number in Counter(row.model for row in group).items() if number == rows_of[model]}
        names = dict.fromkeys(row.model if row.model in whole else f"{row.model} · {row.kind}" for row in group)
        named.append((", ".join(names), group[0].cells))
    return named


def tables(report: dict) -> dict[str, Table]:
    """The CSV tables by file name: every figure, every point of the curves and of the CMC, in long form."""
    figure_header = ("name", "group", "rate", "low", "high", *_COUNTS)
    figures = [
        [*(row[key] for key in _ROW_KEYS[:-1]), *(figure[key] for key in figure_header)]
        for row in report["rows"]
        for figure in row["figures"]
    ]
    curves = [
        [curve["model"], curve["kind"], curve["rank"], *point]
        for curve in report["curves"]
        for point in zip(curve["sizes"], curve["rate"], curve["low"], curve["high"], strict=True)
    ]
    cmc = [
        [curve["model"], curve["kind"], curve["distractors"], *point]
        for curve in report["cmc"]
        for point in zip(curve["ranks"], curve["rate"], strict=True)
    ]
    return {
        "figures.csv": Table((*_ROW_KEYS[:-1], *figure_header), figures),
        "rate_by_size.csv": Table(("model", "kind", "rank", "distractors", "rate", "low", "high"), curves),
        "cmc.csv": Table(("model", "kind", "distractors", "rank", "rate"), cmc),
        **megaface_thresholds.csv_tables(report),
    }


def page(report: dict) -> str:
    """The report as one HTML page."""
    shown = columns(report)
    all_rows = rows(report, shown)
    headline = headline_rows(all_rows)
    parts = [part for name in ("rows", "curves", "cmc") for part in report[name]]
    parts += [rate for name in megaface_thresholds.REQUIRED for rate in (report.get(name) or {}).get("rates", ())]
    keys = [(part["model"], part["kind"]) for part in parts]
    styles = assign_styles(keys)
    context = {
        "report": report,
        "columns": shown,
        "column_groups": _column_groups(shown),
        "rows": all_rows,
        "headline": headline,
        "full": shown.index(Column("all", "full")),
        "count_rows": count_rows(all_rows),
        "several": len({(row.rank, row.distractors) for row in all_rows}) > 1,
        "kinds": list(dict.fromkeys(kind for _, kind in keys)),
        "styles": styles,
        "verification": megaface_thresholds.verification(report, styles),
        "open_set": megaface_thresholds.open_set(report, styles),
        "rate_name": megaface_thresholds.rate_name,
        "figures": [
            *figures(report, shown, headline, styles),
            *megaface_thresholds.figures(report, styles),
        ],
    }
    return render("megaface.html", context)


def _column_groups(shown: Sequence[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns of one group under one heading: (heading, width)."""
    headings = {"shots": "Training shots", "all": "All", "gender": "Gender"}
    groups: list[list] = []
    for column in shown:
        if groups and groups[-1][0] == column.group:
            groups[-1][1] += 1
        else:
            groups.append([column.group, 1])
    return [(headings.get(group, group), width) for group, width in groups]


def _require(part: dict, keys: Sequence[str], place: str) -> None:
    missing = [key for key in keys if key not in part]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)} (schema {SCHEMA})")
