"""Plots of rates as inline SVG: lines with bands, grouped bars, dots with intervals, DET and FNIR-FPIR curves.

Plots take numbers in percent, trade-off curves fractions. Missing values (None) are left out, and so are zeros on
logarithmic axes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from facelt.report.drawing import GRID, MUTED, Plot, Series, Style, inline_figure
from facelt.report.formatting import percent, small_percent
from facelt.report.html_page import markup
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Inches of 72 units; small enough that text stays readable on a phone.
WIDTH, HEIGHT = 6.2, 3.9
# Round percentages at which a logarithmic axis may be labelled.
_ROUND_PERCENTAGES = tuple(float(f"{digit}e{power}") for power in range(-9, 3) for digit in (1, 2, 5))


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str, description: str, log_x: bool = False) -> str:
    """Returns a line plot of rates over `x`, with intervals as bands; `log_x` for gallery sizes.

    `low` and `high` of a series may be empty; `description` is the text for screen readers.
    """
    with inline_figure(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        band = 0.16 / max(1, len(series) / 2)
        for line in series:
            rate = _numbers(line.rate)
            x = np.asarray(line.x, dtype=float)
            if len(line.low):
                ends = [_numbers(end) for end in (line.low, line.high)]
                axes.fill_between(x, *ends, color=line.style.colour, alpha=band, lw=0)
                # Edges separate a few overlapping bands; for many they would be clutter.
                for end in ends if len(series) <= 6 else ():
                    axes.plot(x, end, color=line.style.colour, lw=0.7, alpha=0.55)
            axes.plot(
                x, rate, color=line.style.colour, linestyle=line.style.dash, lw=1.8,
                marker=line.style.marker, markersize=5, markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        ticks = sorted({float(value) for line in series for value in line.x})
        _set_x_ticks(axes, ticks, log_x)
        _set_rate_limits(axes.set_ylim, series, from_zero=False)
        axes.set_xlabel(sanitize(x_label))
        axes.set_ylabel(sanitize(y_label))
        axes.grid(axis="y", color=GRID, lw=0.8)
    return page.svg


def bar_plot(series: Sequence[Series], categories: Sequence[str], *, y_label: str, description: str) -> str:
    """Returns a plot of grouped bars with intervals; a dash marks an empty category."""
    with inline_figure(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        step = 0.84 / max(len(series), 1)
        position = np.arange(len(categories), dtype=float)
        for index, line in enumerate(series):
            x = position + (index - (len(series) - 1) / 2) * step
            rate = _numbers(line.rate)
            axes.bar(
                x, rate, width=step * 0.9, color=line.style.colour,
                hatch=line.style.hatch, edgecolor="white", lw=0,
            )  # fmt: skip
            if len(line.low):
                # A light line under the dark one keeps the interval visible on its bar.
                for colour, width in (("white", 3.2), ("#1b1f24", 1.3)):
                    axes.vlines(x, _numbers(line.low), _numbers(line.high), color=colour, lw=width)
            for empty in x[np.isnan(rate)]:
                axes.text(empty, 1.0, "\N{EN DASH}", ha="center", va="bottom", color=line.style.colour)
        axes.set_xticks(position, [shorten(name) for name in categories])
        axes.set_xlim(-0.6, len(categories) - 0.4)
        axes.tick_params(axis="x", length=0)
        _set_rate_limits(axes.set_ylim, series, from_zero=True)
        axes.set_ylabel(sanitize(y_label))
        axes.grid(axis="y", color=GRID, lw=0.8)
    return page.svg


def dot_plot(
    series: Sequence[Series],
    categories: Sequence[str],
    *,
    x_label: str,
    description: str,
    reference: float | None = None,
    fit_small_rates: bool = False,
) -> str:
    """Returns a dot plot: one line per category, one dot per series with its interval as a bar.

    `reference` is a rate drawn as a dashed line. With `fit_small_rates` the axis is not kept at 5 points or wider, and
    is logarithmic if rates are small and none is 0.
    """
    row = max(0.36, 0.17 * len(series) + 0.12)
    with inline_figure(WIDTH, 0.8 + row * max(len(categories), 1), description) as page:
        axes = page.axes
        position = np.arange(len(categories), dtype=float)
        step = 0.72 / max(len(series), 1)
        for index, line in enumerate(series):
            y = position + (index - (len(series) - 1) / 2) * step
            rate = _numbers(line.rate)
            if len(line.low):
                axes.hlines(y, _numbers(line.low), _numbers(line.high), color=line.style.colour, lw=1.8)
            axes.plot(
                rate, y, color=line.style.colour, linestyle="none", marker=line.style.marker, markersize=6,
                markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        for edge in position[1:] - 0.5:
            axes.axhline(edge, color=GRID, lw=0.8)
        axes.set_yticks(position, [shorten(name) for name in categories])
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        if fit_small_rates:
            reference = _fit_small_rates(axes, _drawn_values(series), reference)
        else:
            _set_rate_limits(axes.set_xlim, series, from_zero=False)
        if reference is not None:
            axes.axvline(reference, color=MUTED, lw=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(sanitize(x_label))
        axes.grid(axis="x", color=GRID, lw=0.8)
    return page.svg


def _fit_small_rates(axes: "Axes", values: np.ndarray, reference: float | None) -> float | None:
    """Fits the x axis to the values and the reference; returns the reference, None if the axis has no room for it."""
    log = bool(values.min() > 0 and values.max() < 10 and values.max() > 8 * values.min())
    if reference is not None and (reference > 0 or not log):
        values = np.append(values, reference)
    else:
        reference = None
    low, high = float(values.min()), float(values.max())
    if not log:
        margin = max(0.06 * (high - low), 0.05 * high, 1e-6)
        axes.set_xlim(max(low - margin, -0.02 * high), min(high + margin, 101))
        return reference
    low, high = low / 1.3, high * 1.3
    decades_only = high / low > 100
    ticks = [tick for tick in _ROUND_PERCENTAGES if low <= tick <= high and (not decades_only or f"{tick:e}"[0] == "1")]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [small_percent(tick / 100) if tick < 1 else f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    return reference


def _drawn_values(series: Sequence[Series]) -> np.ndarray:
    values = np.concatenate([_numbers([*line.rate, *line.low, *line.high]) for line in series] or [np.empty(0)])
    return values[~np.isnan(values)]


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _set_rate_limits(set_limits: Callable, series: Sequence[Series], *, from_zero: bool) -> None:
    """Sets the limits of a percent axis: 0 to 100, or around the values with at least 5 points."""
    drawn = _drawn_values(series)
    if from_zero or not drawn.size:
        set_limits(0, 100)
        return
    low, high = float(drawn.min()), float(drawn.max())
    margin = max(0.06 * (high - low), (5 - (high - low)) / 2, 0.5)
    # A little beyond 100, so that a dot at 100 is not clipped.
    set_limits(max(low - margin, -1), min(high + margin, 101))


def _set_x_ticks(axes: "Axes", ticks: list[float], log_x: bool) -> None:
    if log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
        # Labels closer than a third of a decade would overlap: the larger stays.
        shown = [x for x, after in zip(ticks, [*ticks[1:], np.inf], strict=True) if after >= 2.2 * x]
    else:
        shown = [x for x in ticks if x == ticks[0] or x % 5 == 0] or ticks
    axes.set_xticks(shown, [f"{x:,.0f}" for x in shown])
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] * 0.5, ticks[0] * 2)


@dataclass(frozen=True)
class TradeoffCurve:
    """Curve of one model or group: miss or hit rates `y` over false-alarm rates `x`, fractions, `x` ascending.

    `points` are the operating points (false-alarm rate, `y` or None), drawn as markers and listed in the table. Left of
    `supported_from` the curve rests on fewer than 30 errors and is drawn faint.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: Sequence[tuple[float, float | None]] = ()
    supported_from: float | None = None
    style: Style = field(default_factory=Style)


def det_plot(curves: Sequence[TradeoffCurve], *, title: str = "Detection error trade-off") -> Plot:
    """Returns the DET plot: FNMR over FMR, one curve per model or group."""
    return _tradeoff(curves, title, ("FMR", "false match rate"), ("FNMR", "false non-match rate"), "non-mated pairs")


def open_set_plot(curves: Sequence[TradeoffCurve], *, title: str = "Open-set identification", rank: int = 1) -> Plot:
    """Returns FNIR over FPIR, one curve per model, score or group; a miss is a mate outside the best `rank`."""
    misses = f"false negative identification rate, rank {rank}"
    return _tradeoff(
        curves, title, ("FPIR", "false positive identification rate"), ("FNIR", misses), "non-mated searches"
    )


def dir_plot(curves: Sequence[TradeoffCurve], *, title: str = "Known people named, strangers accepted") -> Plot:
    """Returns DIR over FAR on a logarithmic axis of FAR, one curve per model and score."""
    hits = ("DIR", "detection and identification rate")
    return _tradeoff(curves, title, ("FAR", "share of strangers accepted"), hits, "images of strangers", are_hits=True)


def _tradeoff(
    curves: Sequence[TradeoffCurve], title: str, alarms: tuple[str, str], misses: tuple[str, str], trials: str,
    *, are_hits: bool = False,
) -> Plot:  # fmt: skip
    axes = "a logarithmic axis" if are_hits else "logarithmic axes"
    spoken = "; ".join(f"{curve.label}: {_tradeoff_text(curve, alarms[0], misses[0])}" for curve in curves)
    svg = tradeoff_plot(
        curves,
        x_label=f"{alarms[1]}, {alarms[0]} (%)",
        y_label=f"{misses[0]} (%)",
        description=f"Line plot on {axes} of the {misses[1]} against the {alarms[1]}. {spoken}.",
        log_y=not are_hits,
    )
    alarm_rates = sorted({rate for curve in curves for rate, _ in curve.points}, reverse=True)
    caption = f"{misses[0]} is the {misses[1]}. Lower is better. Both axes are logarithmic; zeros are not drawn."
    if are_hits:
        caption = f"{misses[0]} is the {misses[1]}. Higher is better. The axis of the {alarms[0]} is logarithmic."
    if any(_has_faint_part(curve) for curve in curves):
        caption += f" Faint: fewer than 30 errors expected among the {trials}."
    return Plot(
        title, caption, markup(svg), tuple(_series(curve, log_y=not are_hits) for curve in curves),
        ("", *(f"{misses[0]} (%) at {alarms[0]} {_exact_percent(rate)} %" for rate in alarm_rates)),
        tuple((curve.label, *(percent(dict(curve.points).get(rate)) for rate in alarm_rates)) for curve in curves),
    )  # fmt: skip


def tradeoff_plot(
    curves: Sequence[TradeoffCurve], *, x_label: str, y_label: str, description: str, log_y: bool = True
) -> str:
    """Returns the SVG of the curves; `description` is the text for screen readers. Without `log_y`, y is 0 to 100 %."""
    with inline_figure(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        axes.set_xscale("log")
        axes.set_yscale("log" if log_y else "linear")
        for curve in curves:
            line = _series(curve, log_y=log_y)
            x, y = np.asarray(line.x, dtype=float), np.asarray(line.rate, dtype=float)
            look = {"color": curve.style.colour, "linestyle": curve.style.dash, "lw": 1.8}
            # Both parts include the point where they meet.
            first = np.searchsorted(x, 100 * (curve.supported_from or 0.0), side="left")
            axes.plot(x[: first + 1], y[: first + 1], **{**look, "alpha": 0.4})
            axes.plot(x[first:], y[first:], **look)
            marks = [(100 * rate, 100 * share) for rate, share in curve.points if share or (share == 0 and not log_y)]
            axes.plot(
                *(list(side) for side in (zip(*marks, strict=True) if marks else ((), ()))),
                color=curve.style.colour, linestyle="none", marker=curve.style.marker, markersize=6,
                markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        drawn = [(100 * x, 100 * y) for curve in curves for x, y in (*zip(curve.x, curve.y, strict=True), *curve.points)
                 if x and (y or (y == 0 and not log_y))]  # fmt: skip
        _set_rate_axis(axes.xaxis, axes.set_xlim, [x for x, _ in drawn])
        if log_y:
            _set_rate_axis(axes.yaxis, axes.set_ylim, [y for _, y in drawn])
        else:
            # A little beyond both ends, so that a marker on either is not clipped.
            axes.set_ylim(-1, 101)
        axes.set_xlabel(sanitize(x_label))
        axes.set_ylabel(sanitize(y_label))
        axes.grid(color=GRID, lw=0.8)
        if not drawn:
            axes.text(0.5, 0.5, "no curve: too few trials", transform=axes.transAxes, ha="center")
    return page.svg


def _series(curve: TradeoffCurve, *, log_y: bool = True) -> Series:
    """Returns the curve in percent, without zeros on logarithmic axes."""
    points = zip(curve.x, curve.y, strict=True)
    positive = [(100 * x, 100 * y) for x, y in points if x > 0 and (y > 0 or not log_y)]
    return Series(curve.label, [y for _, y in positive], x=[x for x, _ in positive], style=curve.style)


def _has_faint_part(curve: TradeoffCurve) -> bool:
    return curve.supported_from is not None and any(0 < x < curve.supported_from for x in curve.x)


def _set_rate_axis(axis: "Axis", set_limits: Callable, values: Sequence[float]) -> None:
    """Fits a logarithmic percent axis to the values, labelled at decades or, if it is short, at round rates."""
    low, high = (min(values), max(values)) if values else (0.1, 100.0)
    low, high = min(low, high / 2) / 1.15, high * 1.15
    set_limits(low, high)
    decades = math.log10(high / low)
    shown = [tick for tick in _ROUND_PERCENTAGES if low <= tick <= high and (decades < 2.2 or f"{tick:e}"[0] == "1")]
    if len(shown) < 3:
        from matplotlib.ticker import MaxNLocator

        shown = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(shown, [_exact_percent(tick / 100) for tick in shown])
    axis.set_ticks([], minor=True)


def _exact_percent(rate: float) -> str:
    """Returns a rate in percent without trailing zeros: 1e-6 -> '0.0001'."""
    return f"{100 * rate:.10f}".rstrip("0").rstrip(".")


def _tradeoff_text(curve: TradeoffCurve, alarms: str, misses: str) -> str:
    sentences = []
    for rate, miss_rate in curve.points:
        measured = "not measured" if miss_rate is None else f"{percent(miss_rate)} percent"
        sentences.append(f"{misses} {measured} at {alarms} {_exact_percent(rate)} percent")
    return ", ".join(sentences) or "no operating points"
