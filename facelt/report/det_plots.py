"""Trade-off curves on logarithmic axes: DET (FNMR over FMR) and open-set identification (FNIR over FPIR).

Rates are fractions here and percent in what is drawn. A logarithmic axis has no place for 0: such points are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from facelt.report.megaface_plots import Figure
from facelt.report.page import NOTHING, markup
from facelt.report.plots import HEIGHT, WIDTH
from facelt.report.series import Series, Style
from facelt.report.svg import GRID, drawing
from facelt.report.visible import visible

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


def det_figure(curves: Sequence[Tradeoff], *, title: str = "Detection error trade-off") -> Figure:
    """FNMR over FMR, a curve for each model or group."""
    return _figure(curves, title, ("FMR", "false match rate"), ("FNMR", "false non-match rate"), "non-mated pairs")


def open_set_figure(curves: Sequence[Tradeoff], *, title: str = "Open-set identification", rank: int = 1) -> Figure:
    """FNIR over FPIR, a curve for each model, score or group; a miss is a mate not among the best `rank`."""
    misses = f"false negative identification rate, rank {rank}"
    return _figure(
        curves, title, ("FPIR", "false positive identification rate"), ("FNIR", misses), "non-mated searches"
    )


def _figure(
    curves: Sequence[Tradeoff], title: str, alarms: tuple[str, str], misses: tuple[str, str], trials: str
) -> Figure:
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
    return Figure(
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
        axes.set_xlabel(visible(x_label))
        axes.set_ylabel(visible(y_label))
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
    """A logarithmic percent axis around what is drawn, labelled at decades or, where it is short, at round rates."""
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
    return NOTHING if share is None else f"{100 * share:.2f}"


def _spoken(curve: Tradeoff, alarms: str, misses: str) -> str:
    told = []
    for rate, share in curve.points:
        measured = "not measured" if share is None else f"{100 * share:.2f} percent"
        told.append(f"{misses} {measured} at {alarms} {_percent(rate)} percent")
    return ", ".join(told) or "no figure asked for"
