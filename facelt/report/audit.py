"""The plots of an audit report: rates by group with their intervals, and the error trade-off of each group.

The view of an audit report (schema `facelt.audit/1`): CSV tables, page and the paragraph for a model card.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from facelt.report import audit_text
from facelt.report.audit_text import FIGURES, METRICS, group_name, limits, share
from facelt.report.drawing import GRID, MARKERS, PALETTE, Plot, Series, Style, drawing
from facelt.report.html_page import markup, render
from facelt.report.plots import TICKS, WIDTH, Tradeoff, det_figure
from facelt.utils.tables import Table
from facelt.utils.text import sanitize, shorten

# More curves than this are no longer told apart.
MOST_CURVES = 8
_ONE = Style(PALETTE[0], 0)


def figures(grouping: dict, overall: Mapping[str, dict], level: float) -> list[Plot]:
    """A dot plot for each metric that has rates, then the DET curves of the groups large enough to be drawn."""
    drawn = [_rate_plots(grouping, metric, overall[metric], level) for metric in METRICS if metric in overall]
    drawn = [figure for figure in drawn if figure is not None]
    trade_off = _trade_off(grouping)
    return drawn if trade_off is None else [*drawn, trade_off]


def _rate_plots(grouping: dict, metric: str, overall: dict, level: float) -> Plot | None:
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
    return Plot(f"{what.long[:1].upper()}{what.long[1:]}", caption, markup(svg), series, header, data)


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
        axes.set_yticks(place, [shorten(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _rate_axis(axes, float(known.min()), float(known.max()), log)
        axes.set_xlabel(sanitize(x_label))
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


def _trade_off(grouping: dict) -> Plot | None:
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


SCHEMA = "facelt.audit/1"

_RATE = ("rate", "low", "high", "events", "trials", "identities", "effective", "small")
_SIZE = ("group", "identities", "images", "failures", "failure_rate", "small")
_DISPARITY = ("metric", "figure", "value", "low", "high", "at_least", "note")
_CONTRAST = (
    *("metric", "first", "second", "difference", "low", "high", "ratio", "ratio_low", "ratio_high"),
    *("p", "adjusted_p"),
)
_DET = ("threshold", "fmr", "fnmr")
_REQUIRED = {
    "": (
        *("title", "notes", "provenance", "statistics", "subject", "thresholds", "overall", "det", "groupings"),
        *("against", "training", "conditions"),
    ),
    "statistics": ("level", "alpha", "replicates", "seed", "min_identities"),
    "provenance": ("data", "consent", "licence", "model", "auditor"),
}
_GROUPING = ("by", "groups", "across", "det", "disparities", "contrasts")


def check(report: dict) -> None:
    """Raise ValueError, naming the key, where the report lacks what schema `facelt.audit/1` asks for."""
    for place, keys in _REQUIRED.items():
        _require(report[place] if place else report, keys, place or "report")
    for index, grouping in enumerate(report["groupings"]):
        _require(grouping, _GROUPING, f"groupings[{index}]")


def tables(report: dict) -> dict[str, Table]:
    """The CSV tables by file name, in long form."""
    found = {}
    if report["groupings"]:
        found = {
            "rates.csv": _rates(report),
            "groups.csv": _long(report, _SIZE, "groups"),
            "across.csv": _long(report, ("left", "right", *_RATE), "across"),
            "disparities.csv": _long(report, _DISPARITY, "disparities"),
            "contrasts.csv": _long(report, _CONTRAST, "contrasts"),
            "det.csv": _det(report),
        }
    if report["against"] is not None:
        found["against.csv"] = _against(report["against"])
    if report["training"] is not None:
        found["training.csv"] = _training(report["training"])
    return found


def texts(report: dict) -> dict[str, str]:
    """Further files by name: the paragraph for a model card."""
    return {"model_card.md": audit_text.model_card(report) + "\n"}


def page(report: dict) -> str:
    """The report as one HTML page."""
    level = report["statistics"]["level"]
    groupings = [_shown(grouping, report) for grouping in report["groupings"]]
    context = {
        "report": report,
        "words": audit_text,
        "metrics": [(name, METRICS[name]) for name in METRICS if name in report["overall"]],
        "groupings": groupings,
        "headlines": [
            (" and ".join(grouping["by"]), audit_text.largest_gaps(grouping, level))
            for grouping in report["groupings"]
            if "shots" not in grouping["by"]
        ],
        "card": audit_text.model_card(report),
        "tests": sum(one["p"] is not None for grouping in report["groupings"] for one in grouping["contrasts"]),
        "has_gender": any("gender" in grouping["by"] for grouping in report["groupings"]),
    }
    return render("audit.html", context)


def _shown(grouping: dict, report: dict) -> dict:
    """A grouping with what the template draws of it."""
    by = grouping["by"]
    groups = sorted(grouping["groups"], key=lambda group: audit_text.group_order(by, group["group"]))
    names = [group["group"] for group in groups]
    cell = {(tuple(one["left"]), tuple(one["right"])): one for one in grouping["across"]}
    matrix = [[cell.get((tuple(a), tuple(b))) or cell.get((tuple(b), tuple(a))) for b in names] for a in names]
    ordered = {**grouping, "groups": groups}
    metrics = list(dict.fromkeys(one["metric"] for one in grouping["disparities"]))
    return {
        **ordered,
        "name": " and ".join(by),
        "names": [group_name(name) for name in names],
        "matrix": matrix,
        "singles": [figure for figure in FIGURES if any(one["figure"] == figure for one in grouping["disparities"])],
        "disparity_rows": [(metric, _by_figure(grouping["disparities"], metric)) for metric in metrics],
        "has_own": any(group["own_threshold"] for group in groups),
        "figures": figures(ordered, report["overall"], report["statistics"]["level"]),
    }


def _by_figure(rows: Sequence[dict], metric: str) -> dict[str, dict]:
    return {row["figure"]: row for row in rows if row["metric"] == metric}


def _rates(report: dict) -> Table:
    rows = [["", "", metric, *(row[key] for key in _RATE)] for metric, row in report["overall"].items()]
    for grouping in report["groupings"]:
        for group in grouping["groups"]:
            name = " & ".join(grouping["by"]), group_name(group["group"])
            rows += [[*name, metric, *(row[key] for key in _RATE)] for metric, row in group["rates"].items() if row]
    return Table(("by", "group", "metric", *_RATE), rows)


def _long(report: dict, keys: Sequence[str], part: str) -> Table:
    rows = [
        [" & ".join(grouping["by"]), *(_cell(row[key]) for key in keys)]
        for grouping in report["groupings"]
        for row in grouping[part]
    ]
    return Table(("by", *keys), rows)


def _det(report: dict) -> Table:
    rows = [["", "", *point] for point in zip(*(report["det"][key] for key in _DET), strict=True)]
    rows += [
        [" & ".join(grouping["by"]), group_name(curve["group"]), *point]
        for grouping in report["groupings"]
        for curve in grouping["det"]
        for point in zip(*(curve[key] for key in _DET), strict=True)
    ]
    return Table(("by", "group", *_DET), rows)


def _against(against: dict) -> Table:
    keys = ("group", "rate", "other_rate", "difference", "low", "high", "identities", "small", "p", "adjusted_p")
    rows = [
        [" & ".join(grouping["by"]), *(_cell(row[key]) for key in keys)]
        for grouping in against["groupings"]
        for row in grouping["rows"]
    ]
    return Table(("by", *keys), rows)


def _training(training: dict) -> Table:
    rows = [
        [" & ".join(grouping["by"]), group_name(group["group"]), band, counts["identities"], counts["images"]]
        for grouping in training["groupings"]
        for group in grouping["groups"]
        for band, counts in {"all": group, **group["bands"]}.items()
    ]
    return Table(("by", "group", "shots", "identities", "images"), rows)


def _cell(value: object) -> object:
    return group_name(value) if isinstance(value, list) else value


def _require(part: dict, keys: Sequence[str], place: str) -> None:
    missing = [key for key in keys if key not in part]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)} (schema {SCHEMA})")
