"""The view of an audit report (schema `facelt.audit/1`): CSV tables, page and the paragraph for a model card."""

from collections.abc import Sequence

from facelt.report import audit_plots, audit_words
from facelt.report.audit_words import FIGURES, METRICS, group_name
from facelt.report.page import render
from facelt.report.tables import Table

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
    return {"model_card.md": audit_words.model_card(report) + "\n"}


def page(report: dict) -> str:
    """The report as one HTML page."""
    level = report["statistics"]["level"]
    groupings = [_shown(grouping, report) for grouping in report["groupings"]]
    context = {
        "report": report,
        "words": audit_words,
        "metrics": [(name, METRICS[name]) for name in METRICS if name in report["overall"]],
        "groupings": groupings,
        "headlines": [
            (" and ".join(grouping["by"]), audit_words.largest_gaps(grouping, level))
            for grouping in report["groupings"]
            if "shots" not in grouping["by"]
        ],
        "card": audit_words.model_card(report),
        "tests": sum(one["p"] is not None for grouping in report["groupings"] for one in grouping["contrasts"]),
        "has_gender": any("gender" in grouping["by"] for grouping in report["groupings"]),
    }
    return render("audit.html", context)


def _shown(grouping: dict, report: dict) -> dict:
    """A grouping with what the template draws of it."""
    by = grouping["by"]
    groups = sorted(grouping["groups"], key=lambda group: audit_words.group_order(by, group["group"]))
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
        "figures": audit_plots.figures(ordered, report["overall"], report["statistics"]["level"]),
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
