"""Terminal tables in one style, and labels of two lines."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from facelt.report.formatting import p_value, points_interval, signed_points
from facelt.utils.text import sanitize

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from facelt.report.megaface_schema import PairedFigure
    from facelt.report.schema import AccuracyDifference


_MAX_TITLE = 78


def make_table(
    first_column: str,
    columns: Iterable[str],
    *,
    title: str = "",
    label_width: int | None = None,
    cell_width: int | None = None,
) -> "Table":
    """Returns an empty rich table: a column of labels, then right-aligned columns of numbers.

    Headings of columns may have several lines and are not sanitized.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(sanitize(title), style="bold") if title else None
    # A table narrower than its title would wrap it.
    min_width = len(title) + 2 if len(title) < _MAX_TITLE else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=min_width)
    table.add_column(first_column, max_width=label_width, overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", max_width=cell_width, overflow="fold")
    return table


def label(name: str, *details: str, style: str = "bold") -> "Text":
    """Returns a name with dim details, each on its own line."""
    from rich.text import Text

    text = Text(sanitize(name), style=style)
    for detail in details:
        text.append(f"\n{sanitize(detail)}", style="not bold dim")
    return text


def difference_label(difference: "AccuracyDifference | PairedFigure | None", *, with_interval: bool = True) -> "Text":
    """Returns a difference in points, with a star if it is decided, above its adjusted interval and p-value."""
    if difference is None or difference.difference is None:
        return label("-", style="")
    details = [
        points_interval(difference.adjusted_low, difference.adjusted_high),
        f"p {p_value(difference.adjusted_p)}",
    ]
    shown = filter(None, details if with_interval else [])
    text = signed_points(difference.difference) + "*" * difference.decided
    return label(text, *shown, style="bold" if difference.decided else "")
