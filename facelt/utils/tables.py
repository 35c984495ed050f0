"""Tables as people send them: CSV or tab-separated text whose every mistake is named by file, line and column.

CSV tables that a spreadsheet shows and never runs.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from facelt.errors import UserError

# Rows read at a time, so that a table of scores needs no row object for each of its pairs.
CHUNK = 1 << 16
# A header with more columns, or a field with more letters, is no table of attributes.
_MOST_COLUMNS = 1000


@dataclass(frozen=True, eq=False)
class CsvRows:
    """Some rows of a table, column by column; `line_N` is where each stands in its file."""

    line_N: list[int]
    columns: dict[str, Sequence[str]]


def read_table(path: Path, needed: Sequence[str] = (), **dialect) -> CsvRows:
    """All rows of a table. Raises UserError as `read_chunks` does."""
    parts = list(read_chunks(path, needed, **dialect))
    columns = {
        name: list(itertools.chain.from_iterable(part.columns[name] for part in parts)) for name in parts[0].columns
    }
    return CsvRows(list(itertools.chain.from_iterable(part.line_N for part in parts)), columns)


def read_chunks(path: Path, needed: Sequence[str] = (), **dialect) -> Iterator[CsvRows]:
    """The rows of a CSV file with a header, in chunks, the first of which may be empty; blank lines are passed over.

    Raises UserError naming the file and: the column of `needed` that is missing, a column named twice, the line with
    too few or too many fields, or what is no text in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True, **dialect)
            header = next(reader, [])
            _check_header(path, header, needed)
            numbered = ((reader.line_num, row) for row in reader if row)
            yield _columns(path, header, [])
            while chunk := list(itertools.islice(numbered, CHUNK)):
                yield _columns(path, header, chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a table in UTF-8 ({error})") from error


def _check_header(path: Path, header: list[str], needed: Sequence[str]) -> None:
    if not header or len(header) > _MOST_COLUMNS:
        raise UserError(f"{path}: the first line must name the columns; it has {len(header)} fields")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise UserError(f"{path}: line 1 names the column {twice!r} twice")
    if missing := [name for name in needed if name not in header]:
        raise UserError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(header)}")


def _columns(path: Path, header: list[str], numbered: list[tuple[int, list[str]]]) -> CsvRows:
    for line, row in numbered:
        if len(row) != len(header):
            raise UserError(f"{path}: line {line} has {len(row)} fields, the header has {len(header)}")
    fields = zip(*(row for _, row in numbered), strict=True) if numbered else ([] for _ in header)
    return CsvRows([line for line, _ in numbered], dict(zip(header, fields, strict=True)))


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
