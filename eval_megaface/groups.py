"""Who the probes are: gender from FaceScrub's actor and actress files, or any attribute of a table. P probes."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.auditing.attributes import actor_gender, canonical
from facelt.errors import UserError

# A column with more values is a number or a name, not a grouping.
MAX_VALUES = 40

# column -> identity (canonical name) -> value
Attributes = dict[str, dict[str, str]]


@dataclass(frozen=True, eq=False)
class Group:
    """A figure's name, the group of figures it belongs to, and its probes (bool [P])."""

    name: str
    group: str
    mask_P: np.ndarray


def read_gender(actors: Path, actresses: Path) -> Attributes:
    """Gender by identity from FaceScrub's two tab-separated files (header, name first), actors before actresses.

    Raises UserError naming the file, or the name that is in both.
    """
    return {"gender": actor_gender(actors, actresses)}


def read_attributes(path: Path, identity: str, columns: Sequence[str] | None) -> Attributes:
    """Values of `columns` (all but `identity`, if None) by the identity in column `identity` of a CSV file.

    Raises UserError naming the file, the column that is missing, or the identity with two different values.
    """
    lines = _lines(path)
    _, header = next(lines, (0, []))
    wanted = [name for name in header if name != identity] if columns is None else list(columns)
    missing = [name for name in (identity, *wanted) if name not in header]
    if missing or len(set(header)) != len(header):
        what = f"has no column {missing[0]!r}" if missing else "names a column twice"
        raise UserError(f"{path}: {what}; its columns are {', '.join(header) or 'none'}")
    table: Attributes = {name: {} for name in wanted}
    for number, row in lines:
        if not row:
            continue
        if len(row) != len(header):
            raise UserError(f"{path}: line {number} has {len(row)} fields, the header has {len(header)}")
        record = dict(zip(header, row, strict=True))
        person = canonical(record[identity])
        for name in wanted:
            if record[name] and table[name].setdefault(person, record[name]) != record[name]:
                raise UserError(f"{path}: line {number} gives {record[identity]!r} a second {name}: {record[name]!r}")
    return table


def read_names(path: Path, column: str = "name") -> set[str]:
    """The canonical names in one column of a CSV file. Raises UserError naming the file."""
    lines = _lines(path)
    _, header = next(lines, (0, []))
    if column not in header:
        raise UserError(f"{path}: has no column {column!r}; its columns are {', '.join(header) or 'none'}")
    place = header.index(column)
    return {canonical(row[place]) for _, row in lines if len(row) > place and row[place].strip()}


def _lines(path: Path, **dialect) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, **dialect)
            for row in lines:
                yield lines.line_num, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a table in UTF-8 ({error})") from error


def attribute_groups(
    attributes: Attributes, identity_P: np.ndarray, names: Sequence[str]
) -> tuple[list[Group], list[str]]:
    """A group for each value of each column that a probe identity has, and a note for each column that misses some.

    `identity_P` indexes `names`. Raises UserError on a column with too many values to be a grouping.
    """
    groups, notes = [], []
    for column, value_of in attributes.items():
        value_I = [value_of.get(canonical(name), "") for name in names]
        # Gender keeps the order of its files, male before female; any other column is sorted.
        values = [value for value in ("male", "female") if column == "gender" and value in value_of.values()]
        values += sorted(set(value_I) - set(values) - {""})
        if len(values) > MAX_VALUES:
            raise UserError(
                f"attribute column {column!r} has {len(values)} values, more than {MAX_VALUES}: list the columns wanted"
            )
        for value in values:
            member_I = np.array([other == value for other in value_I], dtype=bool)
            groups.append(Group(value, column, member_I[identity_P]))
        if absent := value_I.count(""):
            notes.append(f"{absent} of {len(names)} probe identities have no {column} and are in none of its groups.")
    return groups, notes
