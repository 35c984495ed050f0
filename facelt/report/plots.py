"""Plots of rates as inline SVG: lines with bands, grouped bars, dots with intervals.

Each takes plain numbers in percent and returns SVG text; what is missing (None) is left out, never drawn as 0.
matplotlib is imported when a plot is drawn.
"""

from collections.abc import Sequence

import numpy as np

from facelt.report.series import Series
from facelt.report.svg import GRID, drawing
from facelt.report.visible import short, visible

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
        axes.set_xlabel(visible(x_label))
        axes.set_ylabel(visible(y_label))
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
        axes.set_xticks(place, [short(name) for name in categories])
        axes.set_xlim(-0.6, len(categories) - 0.4)
        axes.tick_params(axis="x", length=0)
        _rate_limits(axes.set_ylim, series, whole=True)
        axes.set_ylabel(visible(y_label))
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
        axes.set_yticks(place, [short(name) for name in categories])
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _rate_limits(axes.set_xlim, series, whole=False)
        axes.set_xlabel(visible(x_label))
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
