"""CSV tables: a reader whose errors name file, line and column, and a writer safe for spreadsheets."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from facelt.errors import UserError
from recordio_tools.bounded_io import open_regular_file

_CHUNK_ROWS = 1 << 16  # rows read at a time: a table of scores may have hundreds of millions
_MAX_COLUMNS = 1000
# Cells that begin like this are formulas to a spreadsheet; the full-width forms too.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True, eq=False)
class CsvRows:
    """Some rows of a table by column, named as `column_name` returns it; `line_N` holds their line numbers."""

    line_N: list[int]
    columns: dict[str, Sequence[str]]


def column_name(text: str) -> str:
    """Returns the normal form of a column name: names ignore case and surrounding spaces."""
    return text.strip().lower()


def read_table(path: Path, needed: Sequence[str] = (), **dialect) -> CsvRows:
    """Reads all rows of a table. Raises UserError as `read_chunks` does."""
    parts = list(read_chunks(path, needed, **dialect))
    columns = {
        name: list(itertools.chain.from_iterable(part.columns[name] for part in parts)) for name in parts[0].columns
    }
    return CsvRows(list(itertools.chain.from_iterable(part.line_N for part in parts)), columns)


def read_chunks(path: Path, needed: Sequence[str] = (), **dialect) -> Iterator[CsvRows]:
    """Yields the rows of a CSV file with a header in chunks, of which the first may be empty; skips blank lines.

    Raises UserError naming the file and the problem: a column of `needed` that is missing, a repeated column, a line
    with too few or too many fields, or text that is not UTF-8.
    """
    try:
        with open(open_regular_file(path), newline="", encoding="utf-8-sig") as file:  # noqa: PTH123, a descriptor
            reader = csv.reader(file, strict=True, **dialect)
            fields = next(reader, [])
            header = [column_name(field) for field in fields]
            _check_header(path, fields, header, reader.dialect.delimiter)
            if missing := next((name for name in needed if name not in header), None):
                raise UserError(f"{path}: has no column {missing!r}; its columns are {', '.join(header)}")
            numbered = ((reader.line_num, row) for row in reader if row)
            yield _columns(path, header, [])
            while chunk := list(itertools.islice(numbered, _CHUNK_ROWS)):
                yield _columns(path, header, chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a table in UTF-8 ({error})") from error


def _check_header(path: Path, fields: list[str], header: list[str], delimiter: str) -> None:
    """Raises UserError unless the fields of the first line, whose normal forms are `header`, can name columns."""
    if not fields or len(fields) > _MAX_COLUMNS:
        raise UserError(f"{path}: the first line must name 1 to {_MAX_COLUMNS} columns; it has {len(fields)} fields")
    if len(fields) == 1 and delimiter == "," and {";", "\t"} & set(fields[0]):
        raise UserError(f"{path}: the header is one column {fields[0][:200]!r}: separate columns with commas")
    if repeated := next((name for name in header if header.count(name) > 1), None):
        first, second = [field for field, name in zip(fields, header, strict=True) if name == repeated][:2]
        if first == second:
            raise UserError(f"{path}: line 1 names the column {first!r} twice")
        raise UserError(
            f"{path}: line 1 names the columns {first!r} and {second!r}, which are equal but for case or spaces; "
            "rename or remove one"
        )


def _columns(path: Path, header: list[str], numbered: list[tuple[int, list[str]]]) -> CsvRows:
    for line, row in numbered:
        if len(row) != len(header):
            raise UserError(f"{path}: line {line} has {len(row)} fields, the header has {len(header)}")
    fields = zip(*(row for _, row in numbered), strict=True) if numbered else ([] for _ in header)
    return CsvRows([line for line, _ in numbered], dict(zip(header, fields, strict=True)))


@dataclass(frozen=True)
class Table:
    """Column names and rows of text, numbers or None (an empty cell)."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def safe_cell(value: object) -> object:
    """Returns `value` as a cell: text that a spreadsheet could run as a formula gets a leading apostrophe.

    Numbers are unchanged, None becomes an empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, str) and (value.lstrip(" \u00a0").startswith(_FORMULA_STARTS) or value.startswith("'")):
        return "'" + value
    return value


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as RFC 4180 text (CRLF lines) with every text quoted."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerows([safe_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def csv_text(table: Table) -> str:
    """Returns a table as RFC 4180 text, the header first."""
    return csv_lines([table.header, *table.rows])
