"""The view of an evaluation (schema `facelt.evaluation/1`): its tables on the terminal and as CSV."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from facelt.report.plain import plain
from facelt.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "facelt.evaluation/1"
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
_REQUIRED = {
    "": ("schema", "model", "split", "convention", *_ACCURACY, "macro_f", "ece", "ece_bins", "open", "experts"),
    "model": ("name", "weights_sha256", "classes"),
    "experts": ("images", "average_right", "right", "lost", "won", "some_right", "none_right"),
    "open": ("method", "threshold", "threshold_from", *_ACCURACY, "open_images", "reason", "confusion", *OPEN_FIGURES),
}


def check(report: dict) -> None:
    """Raises ValueError, naming the key, where the report lacks what schema `facelt.evaluation/1` asks for."""
    if report.get("schema") != SCHEMA:
        raise ValueError(f"the schema is {report.get('schema')!r}, not {SCHEMA!r}")
    for place, keys in _REQUIRED.items():
        part = report.get(place) if place else report
        missing = [key for key in keys if part is not None and key not in part]
        if missing:
            raise ValueError(f"{place or 'report'} lacks {', '.join(missing)} (schema {SCHEMA})")


def print_evaluation(report: dict, console: "Console | None" = None) -> None:
    """Prints accuracies in percent by bands, and with a rejection every open-set figure and who is taken for whom.

    Raises ValueError where the report lacks a key of its schema.
    """
    from rich.console import Console

    report = plain(report)
    check(report)
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

    console.print(Text(visible(title), style="bold"))
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
