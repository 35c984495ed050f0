"""Verification (TAR at FAR) and open-set identification (FNIR at FPIR) of a MegaFace report: tables, CSV, plots.

Both are tables of one shape: one row per model, kind and score, one column per false-alarm rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from facelt.report.drawing import MARKERS, Plot, Style, Styles
from facelt.report.formatting import rate_name
from facelt.report.megaface_schema import (
    HalfCounts,
    HalfPoint,
    MegafaceReport,
    OpenSetRate,
    OpenSetResult,
    OpenSetSection,
    ScoreCurve,
    VerificationPoint,
    VerificationResult,
    VerificationSection,
)
from facelt.report.plots import TradeoffCurve, det_plot, open_set_plot
from facelt.utils.tables import Table


@dataclass(frozen=True)
class ThresholdCell:
    """Rate and its thresholds; `doubt` counts the errors behind an uncertain rate, `reason` explains a missing one."""

    rate: float | None
    thresholds: tuple[float, ...]
    doubt: str
    reason: str | None


@dataclass(frozen=True)
class ThresholdRow:
    """One model, kind and score; `score` is empty for verification."""

    model: str
    kind: str
    score: str
    cells: tuple[ThresholdCell, ...]
    seconds: float
    style: Style

    @property
    def label(self) -> str:
        """Model, kind and score in one line."""
        return " · ".join(filter(None, (self.model, self.kind, self.score)))


@dataclass(frozen=True)
class ThresholdTable:
    """Values of `rate` at each of the `alarm_rates`."""

    title: str
    rate: str
    alarm: str
    alarm_rates: tuple[float, ...]
    rows: tuple[ThresholdRow, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Distinct reasons for missing values; they depend on the number of trials, which all rows share."""
        missing = (
            f"{self.alarm} {rate_name(alarm_rate)}: {cell.reason}"
            for row in self.rows
            for alarm_rate, cell in zip(self.alarm_rates, row.cells, strict=True)
            if cell.rate is None
        )
        return tuple(dict.fromkeys(missing))

    @property
    def is_uncertain(self) -> bool:
        """True if a value rests on fewer than 30 errors."""
        return any(cell.doubt for row in self.rows for cell in row.cells)


_NO_STYLES: Styles = MappingProxyType({})


def verification_table(report: MegafaceReport, styles: Styles = _NO_STYLES) -> ThresholdTable | None:
    """Returns TAR at each FAR; None if it was not measured."""

    def cell(point: VerificationPoint) -> ThresholdCell:
        is_uncertain = point.tar is not None and not point.supported
        thresholds = () if point.threshold is None else (point.threshold,)
        doubt = f"{point.false_matches} false matches" if is_uncertain else ""
        return ThresholdCell(point.tar, thresholds, doubt, point.reason)

    return _table(report.verification, "Verification", "TAR", "FAR", styles, cell)


def open_set_table(report: MegafaceReport, styles: Styles = _NO_STYLES) -> ThresholdTable | None:
    """Returns FNIR at each FPIR; None if it was not measured."""

    def cell(point: OpenSetRate) -> ThresholdCell:
        is_uncertain = point.fnir is not None and not point.supported
        errors = " and ".join(str(half.false_positives) for half in point.halves)
        doubt = f"{errors} false positives" if is_uncertain else ""
        return ThresholdCell(point.fnir, tuple(half.threshold for half in point.halves), doubt, point.reason)

    return _table(report.open_set, "Open-set identification", "FNIR", "FPIR", styles, cell)


def _table(
    section: VerificationSection | OpenSetSection | None,
    title: str,
    rate: str,
    alarm: str,
    styles: Styles,
    cell: Callable[..., ThresholdCell],
) -> ThresholdTable | None:
    if not section:
        return None

    def row(rates: VerificationResult | OpenSetResult) -> ThresholdRow:
        style = styles.get((rates.model, rates.kind), Style())
        score = rates.score if isinstance(rates, OpenSetResult) else ""
        if score == "reachability":
            # The model's colour with another dash and marker.
            style = Style(style.colour, (style.look + 2) % len(MARKERS))
        return ThresholdRow(rates.model, rates.kind, score, tuple(map(cell, rates.points)), rates.seconds, style)

    alarm_rates = tuple(point.wanted for rates in section.rates[:1] for point in rates.points)
    return ThresholdTable(title, rate, alarm, alarm_rates, tuple(map(row, section.rates)))


def threshold_csv_tables(report: MegafaceReport) -> dict[str, Table]:
    """Returns the CSV tables of the measured sections by file name, in long form."""
    tables = {}
    if section := report.verification:
        keys = ("model", "kind")
        points = [(rates, point) for rates in section.rates for point in rates.points]
        point_keys = tuple(VerificationPoint.model_fields)
        rows = [[*_values(rates, keys), *_values(point, point_keys)] for rates, point in points]
        tables["verification.csv"] = Table((*keys, *point_keys), rows)
        tables["det.csv"] = _curve_table(section.rates, keys, "det", tuple(ScoreCurve.model_fields))
    if section := report.open_set:
        keys = ("model", "kind", "score")
        points = [(rates, point) for rates in section.rates for point in rates.points]
        point_keys = ("wanted", "fnir", "fpir", "supported", "reason")
        rows = [[*_values(rates, keys), *_values(point, point_keys)] for rates, point in points]
        tables["open_set.csv"] = Table((*keys, *point_keys), rows)
        tables["open_set_curves.csv"] = _curve_table(section.rates, keys, "curve", ("fpir", "fnir"))
        half_keys, count_keys = tuple(HalfPoint.model_fields), tuple(HalfCounts.model_fields)
        halves = [
            [*_values(rates, keys), point.wanted, number, *_values(half, half_keys), *_values(counts, count_keys)]
            for rates, point in points if point.halves
            for number, (half, counts) in enumerate(zip(point.halves, section.halves, strict=True), start=1)
        ]  # fmt: skip
        tables["open_set_halves.csv"] = Table((*keys, "wanted", "half", *half_keys, *count_keys), halves)
    return tables


def _values(part: object, keys: Sequence[str]) -> list:
    return [getattr(part, key) for key in keys]


def _curve_table(
    all_rates: Sequence[VerificationResult | OpenSetResult], keys: Sequence[str], curve: str, curve_keys: Sequence[str]
) -> Table:
    rows = [
        [*_values(rates, keys), *point]
        for rates in all_rates
        for point in zip(*_values(getattr(rates, curve), curve_keys), strict=True)
    ]
    return Table((*keys, *curve_keys), rows)


def threshold_plots(report: MegafaceReport, styles: Styles) -> list[Plot]:
    """Returns the trade-off plots of the measured sections, in the order of the page."""
    drawn = []
    if (section := report.verification) and (table := verification_table(report, styles)):
        curves = [
            TradeoffCurve(
                row.label, rates.det.fmr, rates.det.fnmr,
                [(point.wanted, None if point.tar is None else 1 - point.tar) for point in rates.points],
                section.smallest_far, row.style,
            )
            for rates, row in zip(section.rates, table.rows, strict=True)
        ]  # fmt: skip
        drawn.append(det_plot(curves, title="Verification: detection error trade-off"))
    if (section := report.open_set) and (table := open_set_table(report, styles)):
        curves = [
            TradeoffCurve(
                row.label, rates.curve.fpir, rates.curve.fnir,
                [(point.wanted, point.fnir) for point in rates.points], section.smallest_fpir, row.style,
            )
            for rates, row in zip(section.rates, table.rows, strict=True)
        ]  # fmt: skip
        drawn.append(open_set_plot(curves, rank=section.rank))
    return drawn
