"""Plots of rates as inline SVG: lines with bands, grouped bars, dots with intervals.

Each takes plain numbers in percent and returns SVG text; what is missing (None) is left out, never drawn as 0.
matplotlib is imported when a plot is drawn.

Trade-off curves on logarithmic axes: DET (FNMR over FMR) and open-set identification (FNIR over FPIR).

Rates are fractions here and percent in what is drawn. A logarithmic axis has no place for 0: such points are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from facelt.report.drawing import GRID, Plot, Series, Style, drawing
from facelt.report.html_page import EN_DASH, markup
from facelt.utils.text import sanitize, shorten

# Inches at 72 units each; small enough that letters stay readable when a telephone shrinks the drawing.
WIDTH, HEIGHT = 6.2, 3.9


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str, description: str, log_x: bool = False) -> str:
    """Rates over `x`, each with its interval as a band; `log_x` for gallery sizes.

    Args:
        series: what to draw; low and high may be empty.
        description: what a screen reader says.
    """
    with drawing(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        band = 0.16 / max(1, len(series) / 2)
        for one in series:
            rate = _numbers(one.rate)
            x = np.asarray(one.x, dtype=float)
            if len(one.low):
                ends = [_numbers(end) for end in (one.low, one.high)]
                axes.fill_between(x, *ends, color=one.style.colour, alpha=band, lw=0)
                # Edges keep a few overlapping bands apart; of many they would make a thicket.
                for end in ends if len(series) <= 6 else ():
                    axes.plot(x, end, color=one.style.colour, lw=0.7, alpha=0.55)
            axes.plot(
                x, rate, color=one.style.colour, linestyle=one.style.dash, lw=1.8,
                marker=one.style.marker, markersize=5, markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        ticks = sorted({float(value) for one in series for value in one.x})
        _x_ticks(axes, ticks, log_x)
        _rate_limits(axes.set_ylim, series, whole=False)
        axes.set_xlabel(sanitize(x_label))
        axes.set_ylabel(sanitize(y_label))
        axes.grid(axis="y", color=GRID, lw=0.8)
    return page.svg


def bar_plot(series: Sequence[Series], categories: Sequence[str], *, y_label: str, description: str) -> str:
    """Rates of each category side by side, with intervals; a dash stands where a category is empty."""
    with drawing(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        step = 0.84 / max(len(series), 1)
        place = np.arange(len(categories), dtype=float)
        for index, one in enumerate(series):
            x = place + (index - (len(series) - 1) / 2) * step
            rate = _numbers(one.rate)
            axes.bar(
                x, rate, width=step * 0.9, color=one.style.colour,
                hatch=one.style.hatch, edgecolor="white", lw=0,
            )  # fmt: skip
            if len(one.low):
                # A light line beneath the dark one, so that an interval shows on its bar as on the page.
                for colour, width in (("white", 3.2), ("#1b1f24", 1.3)):
                    axes.vlines(x, _numbers(one.low), _numbers(one.high), color=colour, lw=width)
            for empty in x[np.isnan(rate)]:
                axes.text(empty, 1.0, "\N{EN DASH}", ha="center", va="bottom", color=one.style.colour)
        axes.set_xticks(place, [shorten(name) for name in categories])
        axes.set_xlim(-0.6, len(categories) - 0.4)
        axes.tick_params(axis="x", length=0)
        _rate_limits(axes.set_ylim, series, whole=True)
        axes.set_ylabel(sanitize(y_label))
        axes.grid(axis="y", color=GRID, lw=0.8)
    return page.svg


def dot_plot(series: Sequence[Series], categories: Sequence[str], *, x_label: str, description: str) -> str:
    """One line a category, one dot a series, its interval a bar through the dot; grows with what it shows."""
    row = max(0.36, 0.17 * len(series) + 0.12)
    with drawing(WIDTH, 0.8 + row * max(len(categories), 1), description) as page:
        axes = page.axes
        place = np.arange(len(categories), dtype=float)
        step = 0.72 / max(len(series), 1)
        for index, one in enumerate(series):
            y = place + (index - (len(series) - 1) / 2) * step
            rate = _numbers(one.rate)
            if len(one.low):
                axes.hlines(y, _numbers(one.low), _numbers(one.high), color=one.style.colour, lw=1.8)
            axes.plot(
                rate, y, color=one.style.colour, linestyle="none", marker=one.style.marker, markersize=6,
                markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        for edge in place[1:] - 0.5:
            axes.axhline(edge, color=GRID, lw=0.8)
        axes.set_yticks(place, [shorten(name) for name in categories])
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _rate_limits(axes.set_xlim, series, whole=False)
        axes.set_xlabel(sanitize(x_label))
        axes.grid(axis="x", color=GRID, lw=0.8)
    return page.svg


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _rate_limits(set_limits, series: Sequence[Series], whole: bool) -> None:
    """Limits of a percent axis: from 0 for bars (a bar's length is its rate), else around what is drawn, 5 at least."""
    drawn = np.concatenate([_numbers([*one.rate, *one.low, *one.high]) for one in series] or [np.empty(0)])
    drawn = drawn[~np.isnan(drawn)]
    if whole or not drawn.size:
        set_limits(0, 100)
        return
    low, high = float(drawn.min()), float(drawn.max())
    margin = max(0.06 * (high - low), (5 - (high - low)) / 2, 0.5)
    # A little beyond 100, so that a dot at 100 is whole.
    set_limits(max(low - margin, -1), min(high + margin, 101))


def _x_ticks(axes, ticks: list[float], log_x: bool) -> None:
    if log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
        # Neighbours closer than a third of a decade would write over each other: the larger keeps its label.
        shown = [x for x, after in zip(ticks, [*ticks[1:], np.inf], strict=True) if after >= 2.2 * x]
    else:
        shown = [x for x in ticks if x == ticks[0] or x % 5 == 0] or ticks
    axes.set_xticks(shown, [f"{x:,.0f}" for x in shown])
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] * 0.5, ticks[0] * 2)


# Where a percent axis may be labelled.
TICKS = tuple(float(f"{digit}e{power}") for power in range(-9, 3) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Tradeoff:
    """One model's or group's curve: misses `y` over false alarms `x`, fractions, in ascending order of `x`.

    `points` are the figures at the rates that were asked for, (rate, misses or None), drawn as marks and told in the
    table. Left of `supported_from` the curve rests on fewer than 30 errors and is drawn faint.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: Sequence[tuple[float, float | None]] = ()
    supported_from: float | None = None
    style: Style = field(default_factory=Style)


def det_figure(curves: Sequence[Tradeoff], *, title: str = "Detection error trade-off") -> Plot:
    """FNMR over FMR, a curve for each model or group."""
    return _figure(curves, title, ("FMR", "false match rate"), ("FNMR", "false non-match rate"), "non-mated pairs")


def open_set_figure(curves: Sequence[Tradeoff], *, title: str = "Open-set identification", rank: int = 1) -> Plot:
    """FNIR over FPIR, a curve for each model, score or group; a miss is a mate not among the best `rank`."""
    misses = f"false negative identification rate, rank {rank}"
    return _figure(
        curves, title, ("FPIR", "false positive identification rate"), ("FNIR", misses), "non-mated searches"
    )


def _figure(
    curves: Sequence[Tradeoff], title: str, alarms: tuple[str, str], misses: tuple[str, str], trials: str
) -> Plot:
    spoken = "; ".join(f"{curve.label}: {_spoken(curve, alarms[0], misses[0])}" for curve in curves)
    svg = tradeoff_plot(
        curves,
        x_label=f"{alarms[1]}, {alarms[0]} (%)",
        y_label=f"{misses[0]} (%)",
        description=f"Line plot on logarithmic axes of the {misses[1]} against the {alarms[1]}. {spoken}.",
    )
    wanted = sorted({rate for curve in curves for rate, _ in curve.points}, reverse=True)
    caption = f"{misses[0]} is the {misses[1]}. Lower is better; both axes are logarithmic, 0 is left out."
    if any(_faint(curve) for curve in curves):
        caption += f" Faint where the {trials} allow fewer than 30 errors."
    return Plot(
        title, caption, markup(svg), tuple(_series(curve) for curve in curves),
        ("", *(f"{misses[0]} (%) at {alarms[0]} {_percent(rate)} %" for rate in wanted)),
        tuple((curve.label, *(_cell(dict(curve.points).get(rate)) for rate in wanted)) for curve in curves),
    )  # fmt: skip


def tradeoff_plot(curves: Sequence[Tradeoff], *, x_label: str, y_label: str, description: str) -> str:
    """SVG of the curves; what a screen reader says is `description`."""
    with drawing(WIDTH, HEIGHT, description) as page:
        axes = page.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for curve in curves:
            one = _series(curve)
            x, y = np.asarray(one.x, dtype=float), np.asarray(one.rate, dtype=float)
            look = {"color": curve.style.colour, "linestyle": curve.style.dash, "lw": 1.8}
            # Both parts hold the point where they meet.
            first = np.searchsorted(x, 100 * (curve.supported_from or 0.0), side="left")
            axes.plot(x[: first + 1], y[: first + 1], **{**look, "alpha": 0.4})
            axes.plot(x[first:], y[first:], **look)
            marks = [(100 * rate, 100 * share) for rate, share in curve.points if share]
            axes.plot(
                *(list(side) for side in (zip(*marks, strict=True) if marks else ((), ()))),
                color=curve.style.colour, linestyle="none", marker=curve.style.marker, markersize=6,
                markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        drawn = [(100 * x, 100 * y) for curve in curves for x, y in (*zip(curve.x, curve.y, strict=True), *curve.points)
                 if x and y]  # fmt: skip
        for axis, limit, values in (
            (axes.xaxis, axes.set_xlim, [x for x, _ in drawn]),
            (axes.yaxis, axes.set_ylim, [y for _, y in drawn]),
        ):
            _rate_axis(axis, limit, values)
        axes.set_xlabel(sanitize(x_label))
        axes.set_ylabel(sanitize(y_label))
        axes.grid(color=GRID, lw=0.8)
        if not drawn:
            axes.text(0.5, 0.5, "no curve: too few trials", transform=axes.transAxes, ha="center")
    return page.svg


def _series(curve: Tradeoff) -> Series:
    """The curve in percent, without its zeros."""
    kept = [(100 * x, 100 * y) for x, y in zip(curve.x, curve.y, strict=True) if x > 0 and y > 0]
    return Series(curve.label, [y for _, y in kept], x=[x for x, _ in kept], style=curve.style)


def _faint(curve: Tradeoff) -> bool:
    return curve.supported_from is not None and any(0 < x < curve.supported_from for x in curve.x)


def _rate_axis(axis, set_limits, values: Sequence[float]) -> None:
    """A logarithmic percent axis around what is drawn, labelled at decades or, where it is shorten, at round rates."""
    low, high = (min(values), max(values)) if values else (0.1, 100.0)
    low, high = min(low, high / 2) / 1.15, high * 1.15
    set_limits(low, high)
    decades = math.log10(high / low)
    shown = [tick for tick in TICKS if low <= tick <= high and (decades < 2.2 or f"{tick:e}"[0] == "1")]
    if len(shown) < 3:
        from matplotlib.ticker import MaxNLocator

        shown = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(shown, [_percent(tick / 100) for tick in shown])
    axis.set_ticks([], minor=True)


def _percent(rate: float) -> str:
    """A rate in percent without trailing zeros: 1e-6 -> '0.0001'."""
    return f"{100 * rate:.10f}".rstrip("0").rstrip(".")


def _cell(share: float | None) -> str:
    return EN_DASH if share is None else f"{100 * share:.2f}"


def _spoken(curve: Tradeoff, alarms: str, misses: str) -> str:
    told = []
    for rate, share in curve.points:
        measured = "not measured" if share is None else f"{100 * share:.2f} percent"
        told.append(f"{misses} {measured} at {alarms} {_percent(rate)} percent")
    return ", ".join(told) or "no figure asked for"
