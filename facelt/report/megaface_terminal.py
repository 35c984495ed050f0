"""Verification and open-set identification of a MegaFace report on the terminal: a table each, and what to know.

A MegaFace report as tables on the terminal.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from facelt.report import megaface_thresholds
from facelt.report.html_page import interval, percent
from facelt.report.megaface import Column, Row, check, columns, count_rows, rows
from facelt.report.megaface_thresholds import Cell, Rates, rate_name
from facelt.utils.json_values import plain
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LABEL_WIDTH = 20


def rates_table(rates: Rates) -> "Table":
    """A row for each model, kind and score, a column for each rate of false alarms; a star marks what is uncertain."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{rates.title}: {rates.rate} in % at {rates.alarm}", style="bold")
    # Few columns would fold the title.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=len(title) + 2
    )
    table.add_column("model\nkind", max_width=_LABEL_WIDTH, overflow="fold")
    for wanted in rates.wanted:
        table.add_column(rate_name(wanted), justify="right")
    table.add_column("seconds", justify="right")
    for row in rates.rows:
        label = Text(sanitize(row.model), style="bold")
        label.append(f"\n{sanitize(row.kind)}", style="not bold dim")
        if row.score:
            label.append(f"\n{sanitize(row.score)}", style="not bold dim")
        table.add_row(label, *map(_cell_text, row.cells), f"{row.seconds:.1f}")
    return table


def legend(report: dict, rates: list[Rates]) -> list[str]:
    """What stands below: how many pairs and searches there were, and why figures are uncertain or missing."""
    lines = []
    if section := report.get("verification"):
        lines.append(
            f"TAR: {section['mated']:,} mated pairs against {section['nonmated']:,} non-mated ones, of "
            f"{section['distractors']:,} distractors."
        )
    if section := report.get("open_set"):
        galleries = " and ".join(f"{half['gallery']:,}" for half in section["halves"])
        mated, nonmated = (
            " and ".join(f"{half[kind]:,}" for half in section["halves"]) for kind in ("mated", "nonmated")
        )
        lines.append(
            f"FNIR: rank {section['rank']}, mean of two halves; galleries of {galleries} images, {mated} mated and "
            f"{nonmated} non-mated searches; enrolled is {section['enrolment']} (seed {section['seed']})."
        )
    if any(one.doubtful for one in rates):
        lines.append("* uncertain: too few pairs or searches for 30 errors at this rate.")
    return lines + [f"- {reason}." for one in rates for reason in one.reasons]


def _cell_text(cell: Cell) -> str:
    return "-" if cell.rate is None else percent(cell.rate) + ("*" if cell.doubt else "")


_TERMINAL_LABEL_WIDTH = 20
_CELL_WIDTH = 12
# From this width on there is room for the interval of each of the seven columns, not of the full rate alone.
_WIDE = 100


def print_report(report: dict, console: "Console | None" = None) -> None:
    """Print the report's rates in percent: the paper's Table 4, a table for each other group, those at thresholds.

    Args:
        report: schema `facelt.megaface/1`, rates as fractions.
        console: a rich console; by default one on standard output.

    Raises:
        ValueError: the report lacks a key of its schema.
    """
    from rich.console import Console

    report = plain(report)
    check(report)
    console = console or Console()
    shown = columns(report)
    all_rows = rows(report, shown)
    own = [index for index, column in enumerate(shown) if column.group in ("shots", "all", "gender")]
    console.print(_table(shown, all_rows, own, report["title"], every_interval=console.width >= _WIDE))
    for group in dict.fromkeys(column.group for column in shown if column.group not in ("shots", "all", "gender")):
        members = [index for index, column in enumerate(shown) if column.group == group]
        wide = max(1, (console.width - _TERMINAL_LABEL_WIDTH) // (_CELL_WIDTH + 1))
        for start in range(0, len(members), wide):
            console.print(_table(shown, all_rows, members[start : start + wide], group, every_interval=True))
    thresholds = [megaface_thresholds.verification(report), megaface_thresholds.open_set(report)]
    measured = [rates for rates in thresholds if rates]
    for rates in measured:
        console.print(rates_table(rates))
    console.print(_legend(report, legend(report, measured)), style="dim")


def _table(
    shown: Sequence[Column], all_rows: Sequence[Row], members: list[int], title: str, every_interval: bool
) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(sanitize(title), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model\nkind", max_width=_TERMINAL_LABEL_WIDTH, overflow="fold")
    for index in members:
        table.add_column(Text(shorten(shown[index].title)), justify="right", max_width=_CELL_WIDTH, overflow="fold")
    several = len({(row.rank, row.distractors) for row in all_rows}) > 1
    for row in all_rows:
        label = Text(sanitize(row.model), style="bold")
        label.append(f"\n{sanitize(row.kind)}", style="not bold dim")
        if several:
            label.append(f"\nrank {row.rank}, {row.distractors:,}", style="not bold dim")
        table.add_row(
            label, *(_rate_cell(row.cells[index], shown[index].group == "all", every_interval) for index in members)
        )
    table.add_section()
    for name, cells in count_rows([_only(row, members) for row in all_rows]):
        label = Text("pairs" + (f" ({sanitize(name)})" if name else ""), style="dim")
        table.add_row(label, *(Text(_short(cell["pairs"]) if cell else "-", style="dim") for cell in cells))
    return table


def _only(row: Row, members: Sequence[int]) -> Row:
    return Row(row.model, row.kind, row.rank, row.distractors, tuple(row.cells[index] for index in members))


def _rate_cell(cell: dict | None, whole: bool, every_interval: bool):
    from rich.text import Text

    if cell is None or cell["rate"] is None:
        return Text("-")
    text = Text(percent(cell["rate"]), style="bold" if whole else "")
    if (whole or every_interval) and interval(cell["low"], cell["high"]):
        text.append("\n" + interval(cell["low"], cell["high"]), style="not bold dim")
    return text


def _short(number: int) -> str:
    """A count in at most six letters, so that seven columns fit in 80: the page and the CSV tables have it whole."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1000:.0f}k" if number < 1_000_000 else f"{number / 1_000_000:.2f}M"


def _legend(report: dict, further: Sequence[str]):
    from rich.text import Text

    suite, noise, shots, level = report["suite"], report["suite"]["noise"], report["shots"], report["interval"]
    ranks = sorted({row["rank"] for row in report["rows"]})
    sizes = sorted({row["distractors"] for row in report["rows"]})
    bands = ", ".join(f"{name} {meaning}" for name, meaning in shots["bands"].items())
    words = (
        f"Rates in % at rank {', '.join(map(str, ranks))} among "
        f"{', '.join(f'{size:,}' for size in sizes)} distractors; "
        f"{suite['probes']:,} probes of {suite['identities']:,} identities; noise mode {noise['mode']}. "
        f"Below a rate: its {100 * level['level']:.0f} % interval ({level['method']}). "
        f"Shots: training embeddings more similar than {shots['threshold']:g}; {bands}; reference {shots['reference']}."
    )
    return Text("\n".join(sanitize(line) for line in [words, *further, *(f"Note: {note}" for note in report["notes"])]))
