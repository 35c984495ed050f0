"""The plots of an audit report: rates by group with their intervals, and the error trade-off of each group."""

from collections.abc import Mapping, Sequence

import numpy as np

from facelt.report.audit_words import METRICS, group_name, limits, share
from facelt.report.det_plots import TICKS, Tradeoff, det_figure
from facelt.report.megaface_plots import Figure
from facelt.report.page import markup
from facelt.report.plots import WIDTH
from facelt.report.series import MARKERS, PALETTE, Series, Style
from facelt.report.svg import GRID, drawing
from facelt.report.visible import short, visible

# More curves than this are no longer told apart.
MOST_CURVES = 8
_ONE = Style(PALETTE[0], 0)


def figures(grouping: dict, overall: Mapping[str, dict], level: float) -> list[Figure]:
    """A dot plot for each metric that has rates, then the DET curves of the groups large enough to be drawn."""
    drawn = [_rates(grouping, metric, overall[metric], level) for metric in METRICS if metric in overall]
    drawn = [figure for figure in drawn if figure is not None]
    trade_off = _trade_off(grouping)
    return drawn if trade_off is None else [*drawn, trade_off]


def _rates(grouping: dict, metric: str, overall: dict, level: float) -> Figure | None:
    groups = [group for group in grouping["groups"] if (group["rates"][metric] or {}).get("rate") is not None]
    if not groups:
        return None
    names = [f"{group_name(group['group'])}{' *' if group['rates'][metric]['small'] else ''}" for group in groups]
    rows = [group["rates"][metric] for group in groups]
    what = METRICS[metric]
    spoken = "; ".join(f"{name} {_told(row)}" for name, row in zip(names, rows, strict=True))
    svg = _dots(
        rows, names, overall["rate"], x_label=f"{what.long}, {what.short} (%)",
        description=f"Dot plot of the {what.long} by {' and '.join(grouping['by'])}: {spoken}. "
        f"All: {share(overall['rate'])} percent.",
    )  # fmt: skip
    caption = f"Dots are rates, lines their {100 * level:g} % intervals; the dashed line is everyone together."
    if any(row["small"] for row in rows):
        caption += " * too few people to be compared."
    data = tuple(
        (name, share(row["rate"]), limits(row["low"], row["high"]), f"{row['events']:,.0f} of {row['trials']:,.0f}")
        for name, row in zip(names, rows, strict=True)
    )
    series = (Series(what.short, [100 * row["rate"] for row in rows], style=_ONE),)
    header = ("", f"{what.short} (%)", "interval (%)", f"of {what.trials}")
    return Figure(f"{what.long[:1].upper()}{what.long[1:]}", caption, markup(svg), series, header, data)


def _told(row: dict) -> str:
    ends = limits(row["low"], row["high"])
    return f"{share(row['rate'])} percent" + (f", interval {ends}" if ends else "")


def _dots(rows: Sequence[dict], names: Sequence[str], overall: float | None, *, x_label: str, description: str) -> str:
    """One line a group, its rate a dot and its interval a bar; logarithmic where rates are small and none is 0."""
    rate, low, high = (_percents([row[key] for row in rows]) for key in ("rate", "low", "high"))
    known = np.concatenate([rate, low, high])
    known = known[~np.isnan(known)]
    log = bool(known.min() > 0 and known.max() < 10 and known.max() > 8 * known.min())
    with drawing(WIDTH, 0.8 + 0.36 * len(names), description) as page:
        axes, place = page.axes, np.arange(len(names), dtype=float)
        if log:
            axes.set_xscale("log")
        axes.hlines(place, low, high, color=_ONE.colour, lw=1.8)
        axes.plot(rate, place, color=_ONE.colour, linestyle="none", marker=MARKERS[0], markersize=6)
        if overall is not None and (overall > 0 or not log):
            axes.axvline(100 * overall, color="#57606a", lw=1, linestyle=(0, (4, 3)))
            known = np.append(known, 100 * overall)
        axes.set_yticks(place, [short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _rate_axis(axes, float(known.min()), float(known.max()), log)
        axes.set_xlabel(visible(x_label))
        axes.grid(axis="x", color=GRID, lw=0.8)
    return page.svg


def _rate_axis(axes, low: float, high: float, log: bool) -> None:
    if not log:
        margin = max(0.06 * (high - low), 0.05 * high, 1e-6)
        axes.set_xlim(max(low - margin, -0.02 * high), min(high + margin, 101))
        return
    low, high = low / 1.3, high * 1.3
    wide = high / low > 100
    ticks = [tick for tick in TICKS if low <= tick <= high and (not wide or f"{tick:e}"[0] == "1")]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [share(tick / 100) if tick < 1 else f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _percents(rates: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if rate is None else 100 * rate for rate in rates])


def _trade_off(grouping: dict) -> Figure | None:
    large = {tuple(group["group"]): group for group in grouping["groups"] if not group["small"]}
    curves = [one for one in grouping["det"] if one["fmr"] and tuple(one["group"]) in large]
    if not 0 < len(curves) <= MOST_CURVES:
        return None
    drawn = []
    for place, one in enumerate(curves):
        group = large[tuple(one["group"])]
        own, trials = group["own_threshold"], (group["rates"]["fmr"] or {}).get("trials")
        points = [(own["wanted"], own["fnmr"] if own["supported"] else None)] if own else []
        style = Style(PALETTE[place % len(PALETTE)], place % len(MARKERS))
        supported = 30 / trials if trials else None
        drawn.append(Tradeoff(group_name(one["group"]), one["fmr"], one["fnmr"], points, supported, style))
    return det_figure(drawn, title="Error trade-off of each group")
