"""Verification and open-set identification of a MegaFace report on the terminal: a table each, and what to know."""

from typing import TYPE_CHECKING

from facelt.report.megaface_thresholds import Cell, Rates, rate_name
from facelt.report.page import percent
from facelt.report.visible import visible

if TYPE_CHECKING:
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
        label = Text(visible(row.model), style="bold")
        label.append(f"\n{visible(row.kind)}", style="not bold dim")
        if row.score:
            label.append(f"\n{visible(row.score)}", style="not bold dim")
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
