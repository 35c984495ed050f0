"""What a MegaFace report says at thresholds: verification (TAR at FAR) and open-set identification (FNIR at FPIR).

Both are tables of one shape: a row for each model, kind and score, a column for each rate of false alarms. A report of
a run that did not measure them has None in their place, or nothing.

The curves behind a MegaFace report's rates at thresholds: DET, and FNIR over FPIR.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from facelt.report.drawing import MARKERS, Plot, Style
from facelt.report.plots import Tradeoff, det_figure, open_set_figure
from facelt.utils.tables import Table

# Keys of each section, and of each of its `rates`.
REQUIRED = {
    "verification": (
        ("mated", "nonmated", "distractors", "smallest_far", "rates"),
        ("model", "kind", "points", "det", "seconds"),
    ),
    "open_set": (
        ("rank", "seed", "enrolment", "distractors", "halves", "smallest_fpir", "rates"),
        ("model", "kind", "score", "points", "curve", "seconds"),
    ),
}
_HALF = ("threshold", "fpir", "fnir", "false_positives")
_SEARCHES = ("enrolled", "gallery", "mated", "nonmated")


@dataclass(frozen=True)
class Cell:
    """A rate with its thresholds. `doubt` says how few errors it rests on; without a rate `reason` says why."""

    rate: float | None
    thresholds: tuple[float, ...]
    doubt: str
    reason: str | None


@dataclass(frozen=True)
class Row:
    """One model, kind and score; `score` is empty where there is but one."""

    model: str
    kind: str
    score: str
    cells: tuple[Cell, ...]
    seconds: float
    style: Style

    @property
    def label(self) -> str:
        """The row in one line."""
        return " · ".join(filter(None, (self.model, self.kind, self.score)))


@dataclass(frozen=True)
class Rates:
    """A table: `rate` at each of the rates `wanted` of `alarm`."""

    title: str
    rate: str
    alarm: str
    wanted: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why figures are missing, each reason once: they lie in the numbers of pairs or searches, the same for all."""
        missing = (
            f"{self.alarm} {rate_name(wanted)}: {cell.reason}"
            for row in self.rows
            for wanted, cell in zip(self.wanted, row.cells, strict=True)
            if cell.rate is None
        )
        return tuple(dict.fromkeys(missing))

    @property
    def doubtful(self) -> bool:
        """Whether any figure rests on few errors."""
        return any(cell.doubt for row in self.rows for cell in row.cells)


def rate_name(rate: float) -> str:
    """A rate of false alarms as people write it: 0.1, 0.001, 1e-6."""
    if rate >= 1e-3:
        return f"{rate:g}"
    digits, power = f"{rate:.5e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def verification(report: dict, styles: Mapping = MappingProxyType({})) -> Rates | None:
    """TAR at FAR; None where it was not measured."""
    return _rates(
        report.get("verification"), "Verification", "TAR", "FAR", styles,
        lambda point: () if point["threshold"] is None else (point["threshold"],),
        lambda point: f"{point['false_matches']} false matches",
    )  # fmt: skip


def open_set(report: dict, styles: Mapping = MappingProxyType({})) -> Rates | None:
    """FNIR at FPIR; None where it was not measured."""
    return _rates(
        report.get("open_set"), "Open-set identification", "FNIR", "FPIR", styles,
        lambda point: tuple(half["threshold"] for half in point["halves"]),
        lambda point: " and ".join(str(half["false_positives"]) for half in point["halves"]) + " false positives",
    )  # fmt: skip


def _rates(
    section: dict | None,
    title: str,
    rate: str,
    alarm: str,
    styles: Mapping[tuple[str, str], Style],
    thresholds: Callable[[dict], tuple[float, ...]],
    errors: Callable[[dict], str],
) -> Rates | None:
    """The table of a section; its points hold the figure under the rate's name in small letters."""
    if not section:
        return None

    def cell(point: dict) -> Cell:
        figure = point[rate.lower()]
        doubt = "" if point["supported"] or figure is None else errors(point)
        return Cell(figure, thresholds(point), doubt, point["reason"])

    def row(one: dict) -> Row:
        style = styles.get((one["model"], one["kind"]), Style())
        score = one.get("score", "")
        if score == "reachability":
            # The model's colour, another dash and mark.
            style = Style(style.colour, (style.look + 2) % len(MARKERS))
        return Row(one["model"], one["kind"], score, tuple(map(cell, one["points"])), one["seconds"], style)

    wanted = [point["wanted"] for one in section["rates"][:1] for point in one["points"]]
    return Rates(title, rate, alarm, tuple(wanted), tuple(map(row, section["rates"])))


def csv_tables(report: dict) -> dict[str, Table]:
    """The CSV tables of what was measured, by file name, in long form."""
    found, which = {}, ("model", "kind")
    if section := report.get("verification"):
        keys = ("wanted", "tar", "fmr", "threshold", "false_matches", "supported", "reason")
        found["verification.csv"] = _points(section, which, keys)
        found["det.csv"] = _curves(section, which, "det", ("threshold", "fmr", "fnmr"))
    which = (*which, "score")
    if section := report.get("open_set"):
        found["open_set.csv"] = _points(section, which, ("wanted", "fnir", "fpir", "supported", "reason"))
        found["open_set_curves.csv"] = _curves(section, which, "curve", ("fpir", "fnir"))
        halves = [
            [*(one[key] for key in which), point["wanted"], number, *(half[key] for key in _HALF),
             *(searches[key] for key in _SEARCHES)]
            for one in section["rates"]
            for point in one["points"] if point["halves"]
            for number, (half, searches) in enumerate(zip(point["halves"], section["halves"], strict=True), start=1)
        ]  # fmt: skip
        found["open_set_halves.csv"] = Table((*which, "wanted", "half", *_HALF, *_SEARCHES), halves)
    return found


def _points(section: dict, which: tuple[str, ...], keys: tuple[str, ...]) -> Table:
    rows = [
        [*(one[key] for key in which), *(point[key] for key in keys)]
        for one in section["rates"]
        for point in one["points"]
    ]
    return Table((*which, *keys), rows)


def _curves(section: dict, which: tuple[str, ...], curve: str, keys: tuple[str, ...]) -> Table:
    rows = [
        [*(one[key] for key in which), *point]
        for one in section["rates"]
        for point in zip(*(one[curve][key] for key in keys), strict=True)
    ]
    return Table((*which, *keys), rows)


def figures(report: dict, styles: Mapping) -> list[Plot]:
    """The plots of what was measured, in the order of the page."""
    drawn = []
    if table := verification(report, styles):
        drawn.append(_det_plot(report["verification"], table))
    if table := open_set(report, styles):
        drawn.append(_open_set_plot(report["open_set"], table))
    return drawn


def _det_plot(section: dict, table: Rates) -> Plot:
    curves = [
        Tradeoff(
            row.label, one["det"]["fmr"], one["det"]["fnmr"],
            [(point["wanted"], None if point["tar"] is None else 1 - point["tar"]) for point in one["points"]],
            section["smallest_far"], row.style,
        )
        for one, row in zip(section["rates"], table.rows, strict=True)
    ]  # fmt: skip
    return det_figure(curves, title="Verification: detection error trade-off")


def _open_set_plot(section: dict, table: Rates) -> Plot:
    curves = [
        Tradeoff(
            row.label, one["curve"]["fpir"], one["curve"]["fnir"],
            [(point["wanted"], point["fnir"]) for point in one["points"]], section["smallest_fpir"], row.style,
        )
        for one, row in zip(section["rates"], table.rows, strict=True)
    ]  # fmt: skip
    return open_set_figure(curves, rank=section["rank"])
