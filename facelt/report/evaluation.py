"""Evaluation report on the terminal: accuracies by shot band, open-set metrics, confusion, experts."""

from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

from facelt.report.schema import SHOT_BAND_NAMES, EvaluationReport, ExpertSummary, OpenEvaluation
from facelt.report.terminal import difference_label, make_table
from facelt.utils.text import sanitize

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLUMNS = ("overall", *SHOT_BAND_NAMES)

OPEN_SET_METRICS = MappingProxyType(
    {
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
)


def print_evaluation(report: EvaluationReport, console: "Console | None" = None) -> None:
    """Prints accuracies in percent by shot band, and with rejection the open-set metrics and the confusion by band."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    title = f"{report.model.name}: accuracy on {report.split} in %, shot bands of the {report.convention} convention"
    _print(console, title, _accuracies(report))
    if comparison := report.comparison:
        line = (
            f"Below the accuracy: its difference to {comparison.reference} on the same images in points, with the "
            f"{100 * comparison.level:g}% interval over classes and the p-value, both adjusted by Holm's method. "
            "A star: decided."
        )
        console.print(Text(sanitize(line), style="dim"))
    macro_f, ece = _percent(report.macro_f), _percent(report.ece)
    console.print(f"in %: macro-F {macro_f}, calibration error (ECE, {report.ece_bins} bins) {ece}", highlight=False)
    if experts := report.experts:
        console.print()
        _print(console, f"{experts.images:,} images by expert, compared with the ensemble", _experts(experts))
        line = (
            f"ensemble wrong, some expert right: {experts.some_right:,}; "
            f"ensemble right, no expert right: {experts.none_right:,}"
        )
        console.print(line, highlight=False)
    if rejection := report.open:
        method = f"{rejection.method}, threshold {rejection.threshold:.6g} ({rejection.threshold_from})"
        console.print()
        _print(console, f"{method}, {rejection.open_images:,} open images", _open_set_metrics(rejection))
        if rejection.reason:
            console.print(f"- : {rejection.reason}", highlight=False)
        _print(console, "Images by their band and by the answer", _confusion(rejection))


def _print(console: "Console", title: str, table: "Table") -> None:
    from rich.text import Text

    console.print(Text(sanitize(title), style="bold"))
    console.print(table)


def _accuracies(report: EvaluationReport) -> "Table":
    table = make_table("", _COLUMNS)
    rows = {"accuracy": report} | ({"with rejection": report.open} if report.open else {})
    for name, accuracies in rows.items():
        table.add_row(name, *(_percent(getattr(accuracies, band)) for band in _COLUMNS))
        if accuracies is report and report.comparison is not None:
            difference_of = {difference.band: difference for difference in report.comparison.differences}
            table.add_row("difference", *(difference_label(difference_of.get(band)) for band in _COLUMNS))
    for name in ("classes", "images"):
        counts = [getattr(getattr(report, name), band) for band in SHOT_BAND_NAMES]
        table.add_row(name, *_counts((sum(counts), *counts)))
    return table


def _experts(experts: ExpertSummary) -> "Table":
    table = make_table("", ("right", "right, ensemble wrong", "wrong, ensemble right"))
    for number, counts in enumerate(zip(experts.right, experts.lost, experts.won, strict=True), start=1):
        table.add_row(f"expert {number}", *_counts(counts))
    table.add_row("ensemble", f"{experts.average_right:,}", "", "")
    return table


def _open_set_metrics(rejection: OpenEvaluation) -> "Table":
    table = make_table("", ("%",))
    for key, name in OPEN_SET_METRICS.items():
        table.add_row(name, _percent(getattr(rejection, key)))
    return table


def _confusion(rejection: OpenEvaluation) -> "Table":
    table = make_table("", ("right", *(f"as {band}" for band in SHOT_BAND_NAMES), "rejected", "all"))
    for true, row in rejection.confusion.items():
        # No answer to an open image is right but a rejection.
        cells = ["" if (true, answer) == ("open", "right") else f"{count:,}" for answer, count in row.items()]
        table.add_row(true, *cells, f"{sum(row.values()):,}")
    return table


def _counts(counts: Iterable[int]) -> list[str]:
    return [f"{count:,}" for count in counts]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"
