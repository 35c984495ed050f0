"""Report on known people and strangers on the terminal: accuracy by band, DIR at FAR, paired differences in words."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from facelt.report.formatting import EN_DASH, count, percent, percent_interval
from facelt.report.known_people import headline_sentences, unmeasured_reasons
from facelt.report.known_people_schema import DirPoint, KnownPeopleReport, KnownRate, KnownScoreResult
from facelt.report.terminal import label, make_table
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_LABEL_WIDTH = 19


def print_known_people(report: KnownPeopleReport, console: "Console | None" = None) -> None:
    """Prints rank-1 accuracy by band, DIR at each FAR, the differences to the reference in words, and the legend."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(_accuracies(report))
    console.print(_detection(report))
    for sentence in headline_sentences(report):
        console.print(Text(sanitize(f"{sentence}.")))
    console.print(Text("\n".join(map(sanitize, _legend(report))), style="dim"))


def _accuracies(report: KnownPeopleReport) -> "Table":
    columns = ["all\n", *(f"{band}\n{images}" for band, images in report.bands.items())]
    table = make_table(
        "", columns, title=f"Known people named right on {report.split} in %, by training images",
        label_width=_LABEL_WIDTH,
    )  # fmt: skip
    _add_scores(table, report, lambda result: map(_rate_cell, result.accuracy.values()))
    counts = [report.known[band] for band in ("all", *report.bands)]
    cells = (label(count(part.images), f"({count(part.identities)})", style="") for part in counts)
    table.add_row(label("images", "(identities)", style=""), *cells)
    return table


def _detection(report: KnownPeopleReport) -> "Table":
    fars = [f"FAR\n{100 * point.far:g} %" for point in report.scores[0].dir]
    table = make_table(
        "", [*fars, "\nAUROC", "\nOSCR", "FPR at\n95 % TPR"], title="Strangers kept out: DIR in % at each FAR",
        label_width=_LABEL_WIDTH,
    )  # fmt: skip

    def cells(result: KnownScoreResult) -> Iterable["Text | str"]:
        rates = (result.auroc, result.oscr, result.fpr_at_95_tpr)
        return (*map(_dir_cell, result.dir), *(percent(rate, 1) for rate in rates))

    _add_scores(table, report, cells)
    return table


def _add_scores(
    table: "Table", report: KnownPeopleReport, cells: Callable[[KnownScoreResult], Iterable["Text | str"]]
) -> None:
    """Adds a row with each model's name, followed by one for each of its scores."""
    defaults = {model.name: model.default_score for model in report.models}
    for model, results in groupby(report.scores, key=lambda result: result.model):
        table.add_row(label(shorten(model, _LABEL_WIDTH)))
        for result in results:
            style = "bold" if result.score == defaults[model] else ""
            table.add_row(label(f"  {result.score}", style=style), *cells(result))


def _rate_cell(rate: KnownRate | None, mark: str = "") -> "Text":
    if rate is None or rate.rate is None:
        return label(EN_DASH, style="")
    interval = percent_interval(rate.low, rate.high)
    return label(percent(rate.rate, 1) + mark, *([interval] if interval else []), style="")


def _dir_cell(point: DirPoint) -> "Text":
    return _rate_cell(point.rate, "" if point.supported else "*")


def _legend(report: KnownPeopleReport) -> list[str]:
    strangers = sum(source.images for source in report.strangers)
    lines = [
        f"Named right: the share of held-out images of {report.known['all'].identities:,} known people that get their "
        "identity, none rejected.",
        f"FAR: the share of {strangers:,} images of strangers accepted. DIR: the share of known images accepted and "
        "named right at the lowest threshold that keeps the FAR.",
        f"Below a rate: its {100 * report.level:g} % interval by identity, thresholds taken as fixed.",
    ]
    lines += [f"{name}: {definition}." for name, definition in report.definitions.items()]
    if any(point.rate is not None and not point.supported for result in report.scores for point in result.dir):
        lines.append("* uncertain: fewer than 30 images of strangers are accepted at this FAR.")
    return [*lines, *(f"{EN_DASH} {reason}." for reason in unmeasured_reasons(report)), *report.notes]
