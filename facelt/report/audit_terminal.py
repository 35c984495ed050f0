"""An audit report on the terminal: a table of rates for each grouping, and what sets its groups apart."""

from typing import TYPE_CHECKING

from facelt.report.audit_words import METRICS, group_name, largest_gaps, limits, share, threshold_text
from facelt.report.plain import plain
from facelt.report.visible import short, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_audit(report: dict, console: "Console | None" = None) -> None:
    """Print rates by group in percent with their intervals, the largest gap of each metric, and the training counts.

    Args:
        report: schema `facelt.audit/1`.
        console: a rich console; by default one on standard output.
    """
    from rich.console import Console
    from rich.text import Text

    report = plain(report)
    console = console or Console()
    level = report["statistics"]["level"]
    for grouping in report["groupings"]:
        console.print(_rates(grouping, report))
        for sentence in largest_gaps(grouping, level) if "shots" not in grouping["by"] else ():
            console.print(Text(visible(sentence)))
    for grouping in (report["against"] or {"groupings": []})["groupings"]:
        console.print(_against(grouping))
    for grouping in (report["training"] or {"groupings": []})["groupings"]:
        console.print(_training(grouping))
    for use, threshold in report["thresholds"].items():
        console.print(Text(visible(f"Threshold for {use}: {threshold_text(threshold)}."), style="dim"))
    for note in report["notes"]:
        console.print(Text(visible(f"Note: {note}"), style="dim"))


def _rates(grouping: dict, report: dict) -> "Table":
    from rich.text import Text

    table = _table(f"By {' and '.join(grouping['by'])}", "group")
    metrics = [metric for metric in METRICS if metric in report["overall"]]
    for metric in metrics:
        table.add_column(METRICS[metric].short, justify="right")
    rows = [("all", report["overall"], False)]
    rows += [(group_name(group["group"]), group["rates"], group["small"]) for group in grouping["groups"]]
    for name, rates, small in rows:
        label = Text(short(name), style="dim" if small else "bold")
        label.append("\ntoo small" if small else "", style="not bold dim")
        table.add_row(label, *(_cell(rates[metric]) for metric in metrics))
    return table


def _cell(row: dict | None):
    from rich.text import Text

    if row is None or row["rate"] is None:
        return Text("-")
    text = Text(share(row["rate"]))
    if ends := limits(row["low"], row["high"]):
        text.append(f"\n{ends}", style="dim")
    return text


def _against(grouping: dict) -> "Table":
    from rich.text import Text

    table = _table(f"Rank 1 of the other model less this one, by {' and '.join(grouping['by'])}", "group")
    for name in ("this", "other", "difference", "p (Holm)"):
        table.add_column(name, justify="right")
    for row in grouping["rows"]:
        ends = f"{share(row['difference'])}\n{limits(row['low'], row['high'])}"
        p = "-" if row["adjusted_p"] is None else f"{row['adjusted_p']:.2g}"
        table.add_row(Text(short(group_name(row["group"]))), share(row["rate"]), share(row["other_rate"]), ends, p)
    return table


def _training(grouping: dict) -> "Table":
    from rich.text import Text

    table = _table(f"Training images (identities) by {' and '.join(grouping['by'])}", "group")
    bands = list(grouping["groups"][0]["bands"])
    for name in ("all", *bands):
        table.add_column(name, justify="right")
    for group in grouping["groups"]:
        counts = [group, *(group["bands"][band] for band in bands)]
        cells = (f"{one['images']:,} ({one['identities']:,})" for one in counts)
        table.add_row(Text(short(group_name(group["group"]))), *cells)
    return table


def _table(title: str, first: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    return table
