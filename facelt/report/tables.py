"""CSV tables that a spreadsheet shows and never runs."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A spreadsheet takes a cell that begins so for a formula, the full-width forms included.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class Table:
    """A table for machines: `header` names the columns, `rows` hold text, numbers or None (an empty cell)."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def safe_cell(value: object) -> object:
    """`value` as a cell: text that a spreadsheet could run gets a leading apostrophe, which marks it as text.

    Numbers stay as they are (a negative number is no formula) and None becomes an empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, str) and (value.lstrip(" \u00a0").startswith(_FORMULA_STARTS) or value.startswith("'")):
        return "'" + value
    return value


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as RFC 4180 text (CRLF lines), every text quoted, so that no separator splits a name into two cells."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerows([safe_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def csv_text(table: Table) -> str:
    """The table as `csv_lines`, its header first."""
    return csv_lines([table.header, *table.rows])
