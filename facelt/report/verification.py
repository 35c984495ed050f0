"""The view of verification on lists of pairs (schema `facelt.verification/1`): its table on the terminal."""

from typing import TYPE_CHECKING

from facelt.report.page import NOTHING, interval, percent
from facelt.report.plain import plain
from facelt.report.visible import short, visible

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "facelt.verification/1"
_REQUIRED = {
    "": ("schema", "source", "level", "sets"),
    "source": ("name", "kind", "flip_averaged"),
    "set": ("name", "mated", "nonmated", "people", "accuracy", "accuracy_std", "points"),
    "point": ("wanted", "tar", "tar_limits", "far", "far_limits", "supported", "reason"),
}
_NAME_WIDTH = 16


def check(report: dict) -> None:
    """Raises ValueError, naming the key, where the report lacks what schema `facelt.verification/1` asks for."""
    if report.get("schema") != SCHEMA:
        raise ValueError(f"the schema is {report.get('schema')!r}, not {SCHEMA!r}")
    _has(report, "")
    _has(report["source"], "source")
    for one in report["sets"]:
        _has(one, "set")
        for point in one["points"]:
            _has(point, "point")


def print_verification(report: dict, console: "Console | None" = None) -> None:
    """Prints the 10-fold accuracy of each set and TAR at each FAR in percent, limits below.

    Raises ValueError where the report lacks a key of its schema.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    report = plain(report)
    check(report)
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in ("10-fold\naccuracy", *(f"TAR at\nFAR {wanted:g}" for wanted in _fars(report))):
        table.add_column(column, justify="right")
    for one in report["sets"]:
        name = Text(short(one["name"], _NAME_WIDTH))
        name.append(f"\n{one['mated'] + one['nonmated']:,} pairs", style="dim")
        accuracy = Text(percent(one["accuracy"]), style="bold")
        accuracy.append(f"\n± {percent(one['accuracy_std'])}", style="not bold dim")
        table.add_row(name, accuracy, *(_cell(point) for point in one["points"]))
    console.print(Text(visible(_title(report["source"])), style="bold"))
    console.print(table)
    console.print(Text("\n".join(visible(line) for line in _legend(report))), style="dim", highlight=False)


def _has(part: dict, place: str) -> None:
    missing = [key for key in _REQUIRED[place] if key not in part]
    if missing:
        raise ValueError(f"{place or 'report'} lacks {', '.join(missing)} (schema {SCHEMA})")


def _fars(report: dict) -> list[float]:
    return [point["wanted"] for point in report["sets"][0]["points"]] if report["sets"] else []


def _title(source: dict) -> str:
    told = [source["name"]]
    if source["kind"] is not None:
        averaged = "image and mirror image averaged" if source["flip_averaged"] else "images as they are"
        told.append(f"{source['kind']} embedding, {averaged}")
    return f"{': '.join(told)}; in %"


def _cell(point: dict):
    from rich.text import Text

    text = Text(percent(point["tar"]) + ("" if point["supported"] or point["tar"] is None else "*"))
    if point["tar_limits"] is not None:
        text.append("\n" + interval(*point["tar_limits"]), style="dim")
    return text


def _legend(report: dict) -> list[str]:
    points = [(one, point) for one in report["sets"] for point in one["points"]]
    lines = [
        f"±: spread over the ten folds. Below a TAR: its {100 * report['level']:.0f} % limits at that threshold, "
        "people as far as the pairs tell who is one; those of the FAR are in the JSON."
    ]
    if any(point["tar"] is not None and not point["supported"] for _, point in points):
        lines.append("* uncertain: too few non-mated pairs for 30 errors at this rate.")
    reasons = dict.fromkeys(f"{one['name']}: {point['reason']}." for one, point in points if point["reason"])
    return lines + [f"{NOTHING} {reason}" for reason in reasons]
