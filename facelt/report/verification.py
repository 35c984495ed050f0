"""Verification report on the terminal: 10-fold accuracy, and TAR at FAR with its limits."""

from typing import TYPE_CHECKING

from facelt.report.formatting import EN_DASH, percent, percent_interval
from facelt.report.schema import PairPoint, VerificationReport, VerificationSource
from facelt.report.terminal import label, make_table
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_NAME_WIDTH = 16


def print_verification(report: VerificationReport, console: "Console | None" = None) -> None:
    """Prints the 10-fold accuracy of each set, and TAR at each FAR in percent with its limits."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    fars = [point.wanted for pairs in report.sets[:1] for point in pairs.points]
    table = make_table("", ("10-fold\naccuracy", *(f"TAR at\nFAR {far:g}" for far in fars)))
    for pairs in report.sets:
        name = label(shorten(pairs.name, _NAME_WIDTH), f"{pairs.mated + pairs.nonmated:,} pairs", style="")
        accuracy = label(percent(pairs.accuracy), f"± {percent(pairs.accuracy_std)}")
        table.add_row(name, accuracy, *map(_cell, pairs.points))
    console.print(Text(sanitize(_title(report.source)), style="bold"))
    console.print(table)
    console.print(Text("\n".join(map(sanitize, _legend(report))), style="dim"), highlight=False)


def _title(source: VerificationSource) -> str:
    if source.kind is None:
        return f"{source.name}; in %"
    flip = "image and mirror image averaged" if source.flip_averaged else "without mirror images"
    return f"{source.name}: {source.kind} embedding, {flip}; in %"


def _cell(point: PairPoint) -> "Text":
    star = "" if point.supported or point.tar is None else "*"
    limits = [] if point.tar_limits is None else [percent_interval(*point.tar_limits)]
    return label(percent(point.tar) + star, *limits, style="")


def _legend(report: VerificationReport) -> list[str]:
    points = [(pairs, point) for pairs in report.sets for point in pairs.points]
    lines = [
        f"±: standard deviation over the ten folds. Below a TAR: its {100 * report.level:.0f} % limits at that "
        "threshold, clustered by person as far as the pairs identify people; the limits of the FAR are in the JSON."
    ]
    if any(point.tar is not None and not point.supported for _, point in points):
        lines.append("* uncertain: too few non-mated pairs for 30 errors at this rate.")
    reasons = dict.fromkeys(f"{pairs.name}: {point.reason}." for pairs, point in points if point.reason)
    lines += [f"{EN_DASH} {reason}" for reason in reasons]
    return lines + [f"{pairs.name}, FAR {point.wanted:g}: {point.warning}." for pairs, point in points if point.warning]
