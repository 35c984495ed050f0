"""The view of an evaluation (schema `facelt.evaluation/1`): its tables on the terminal and as CSV.

What an evaluation leaves in files: CSV tables, and a plot of a sweep.

Shapes: T points of a curve.

The view of verification on lists of pairs (schema `facelt.verification/1`): its table on the terminal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facelt.report.figures import draw_sweep
from facelt.report.html_page import EN_DASH, interval, percent
from facelt.utils.json_values import plain
from facelt.utils.tables import Table, csv_text
from facelt.utils.text import sanitize, shorten
from recordio_tools.atomic_io import write_text

if TYPE_CHECKING:
    from rich.console import Console

EVALUATION_SCHEMA = "facelt.evaluation/1"
BANDS = ("many", "medium", "few")

# What is told of a method that rejects images, in the words of the terminal.
OPEN_FIGURES = {
    "open_rejected": "open images rejected",
    "f_measure_released": "F-measure, released form",
    "f_measure_paper": "F-measure, paper's form",
    "macro_f_with_unknown": "macro-F with the unknown class",
    "auroc": "AUROC",
    "aupr_known_positive": "AUPR in (known positive)",
    "aupr_open_positive": "AUPR out (open positive)",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
    "detection_error_at_95_tpr": "detection error at 95 % TPR",
    "detection_error_minimum": "detection error, minimum",
    "oscr": "OSCR, area",
}
_ACCURACY = ("overall", *BANDS, "classes", "images")
_EVALUATION_REQUIRED = {
    "": ("schema", "model", "split", "convention", *_ACCURACY, "macro_f", "ece", "ece_bins", "open", "experts"),
    "model": ("name", "weights_sha256", "classes"),
    "experts": ("images", "average_right", "right", "lost", "won", "some_right", "none_right"),
    "open": ("method", "threshold", "threshold_from", *_ACCURACY, "open_images", "reason", "confusion", *OPEN_FIGURES),
}


def check_evaluation(report: dict) -> None:
    """Raises ValueError, naming the key, where the report lacks what schema `facelt.evaluation/1` asks for."""
    if report.get("schema") != EVALUATION_SCHEMA:
        raise ValueError(f"the schema is {report.get('schema')!r}, not {EVALUATION_SCHEMA!r}")
    for place, keys in _EVALUATION_REQUIRED.items():
        part = report.get(place) if place else report
        missing = [key for key in keys if part is not None and key not in part]
        if missing:
            raise ValueError(f"{place or 'report'} lacks {', '.join(missing)} (schema {EVALUATION_SCHEMA})")


def print_evaluation(report: dict, console: "Console | None" = None) -> None:
    """Prints accuracies in percent by bands, and with a rejection every open-set figure and who is taken for whom.

    Raises ValueError where the report lacks a key of its schema.
    """
    from rich.console import Console

    report = plain(report)
    check_evaluation(report)
    console = console or Console()
    model, split, convention = report["model"]["name"], report["split"], report["convention"]
    _show(console, f"{model}: accuracy on {split} in %, shots by the {convention} convention", _accuracies(report))
    macro_f, ece = _percent(report["macro_f"]), _percent(report["ece"])
    console.print(f"in %: macro-F {macro_f}, calibration error (ECE, {report['ece_bins']} bins) {ece}", highlight=False)
    if report["experts"] is not None:
        console.print()
        apart = report["experts"]
        _show(console, f"{apart['images']:,} images by expert, beside the answer of all together", _experts(apart))
        some, none = f"{apart['some_right']:,}", f"{apart['none_right']:,}"
        console.print(f"together wrong, some expert right: {some}; together right, no expert: {none}", highlight=False)
    if (open_ := report["open"]) is None:
        return
    method = f"{open_['method']}, threshold {open_['threshold']:.6g} ({open_['threshold_from']})"
    console.print()
    _show(console, f"{method}, {open_['open_images']:,} open images", _figures(open_))
    if open_["reason"]:
        console.print(f"- : {open_['reason']}", highlight=False)
    _show(console, "Images by where they belong and how they are answered", _confusion(open_["confusion"]))


def _show(console: "Console", title: str, table) -> None:
    from rich.text import Text

    console.print(Text(sanitize(title), style="bold"))
    console.print(table)


def _accuracies(report: dict):
    table = _table(("overall", *BANDS))
    table.add_row("accuracy", *(_percent(report[band]) for band in ("overall", *BANDS)))
    if report["open"] is not None:
        table.add_row("with rejection", *(_percent(report["open"][band]) for band in ("overall", *BANDS)))
    for name in ("classes", "images"):
        counts = [report[name][band] for band in BANDS]
        table.add_row(name, *(f"{count:,}" for count in (sum(counts), *counts)))
    return table


def _experts(experts: dict):
    table = _table(("right", "right, together wrong", "wrong, together right"))
    for number, counts in enumerate(zip(experts["right"], experts["lost"], experts["won"], strict=True), start=1):
        table.add_row(f"expert {number}", *(f"{count:,}" for count in counts))
    table.add_row("together", f"{experts['average_right']:,}", "", "")
    return table


def _figures(open_: dict):
    table = _table(("%",))
    for key, words in OPEN_FIGURES.items():
        table.add_row(words, _percent(open_[key]))
    return table


def _confusion(confusion: dict):
    table = _table(("right", *(f"as {band}" for band in BANDS), "rejected", "all"))
    for true, row in confusion.items():
        cells = ["" if (true, answer) == ("open", "right") else f"{count:,}" for answer, count in row.items()]
        table.add_row(true, *cells, f"{sum(row.values()):,}")
    return table


def _table(columns: Sequence[str]):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


# Of a curve: a point for each image would be a table that no one opens.
MOST_POINTS = 500


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Writes one CSV table; returns its path. Raises UserError where the disk refuses."""
    write_text(path, csv_text(Table(header, rows)), "choose another place for it")
    return path


def write_open(
    out: Path, reports: Sequence[dict], curves: Sequence[tuple[np.ndarray, np.ndarray] | None]
) -> list[Path]:
    """Writes confusion.csv, images by the band of their class (or open) and what they were answered with, and oscr.csv,
    the curve (share of open images accepted [T], of known images named rightly [T]) of each report's model.
    """
    names = [report["model"]["name"] for report in reports]
    confused = [
        [name, true, *row.values()]
        for name, report in zip(names, reports, strict=True)
        for true, row in report["open"]["confusion"].items()
    ]
    points = [
        [name, *point]
        for name, curve in zip(names, curves, strict=True)
        if curve is not None
        for point in zip(*(_thinned(side_T) for side_T in curve), strict=True)
    ]
    answers = ("right", *(f"named_{band}" for band in BANDS), "rejected")
    return [
        write_table(out / "confusion.csv", ("model", "true", *answers), confused),
        write_table(out / "oscr.csv", ("model", "open_accepted", "known_right"), points),
    ]


def write_sweep(out: Path, name: str, header: Sequence[str], rows: Sequence[Sequence]) -> list[Path]:
    """Writes a sweep's table and its plot as name.csv, name.svg and name.png."""
    table = write_table(out / f"{name}.csv", header, rows)
    draw_sweep(Table(header, rows), out / name)
    return [table, *(out / f"{name}{suffix}" for suffix in (".svg", ".png"))]


def _thinned(value_T: np.ndarray) -> list[float]:
    places = np.unique(np.linspace(0, len(value_T) - 1, min(len(value_T), MOST_POINTS)).round().astype(int))
    return value_T[places].tolist()


VERIFICATION_SCHEMA = "facelt.verification/1"
_VERIFICATION_REQUIRED = {
    "": ("schema", "source", "level", "sets"),
    "source": ("name", "kind", "flip_averaged"),
    "set": ("name", "mated", "nonmated", "people", "accuracy", "accuracy_std", "points"),
    "point": ("wanted", "tar", "tar_limits", "far", "far_limits", "supported", "reason"),
}
_NAME_WIDTH = 16


def check_verification(report: dict) -> None:
    """Raises ValueError, naming the key, where the report lacks what schema `facelt.verification/1` asks for."""
    if report.get("schema") != VERIFICATION_SCHEMA:
        raise ValueError(f"the schema is {report.get('schema')!r}, not {VERIFICATION_SCHEMA!r}")
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
    check_verification(report)
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in ("10-fold\naccuracy", *(f"TAR at\nFAR {wanted:g}" for wanted in _fars(report))):
        table.add_column(column, justify="right")
    for one in report["sets"]:
        name = Text(shorten(one["name"], _NAME_WIDTH))
        name.append(f"\n{one['mated'] + one['nonmated']:,} pairs", style="dim")
        accuracy = Text(percent(one["accuracy"]), style="bold")
        accuracy.append(f"\n± {percent(one['accuracy_std'])}", style="not bold dim")
        table.add_row(name, accuracy, *(_cell(point) for point in one["points"]))
    console.print(Text(sanitize(_title(report["source"])), style="bold"))
    console.print(table)
    console.print(Text("\n".join(sanitize(line) for line in _legend(report))), style="dim", highlight=False)


def _has(part: dict, place: str) -> None:
    missing = [key for key in _VERIFICATION_REQUIRED[place] if key not in part]
    if missing:
        raise ValueError(f"{place or 'report'} lacks {', '.join(missing)} (schema {VERIFICATION_SCHEMA})")


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
    return lines + [f"{EN_DASH} {reason}" for reason in reasons]
