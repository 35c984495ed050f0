"""Who the probes are: gender from FaceScrub's actor and actress files, or any attribute of a table. P probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.auditing.attributes import MAX_VALUES, actor_gender, canonical
from facelt.auditing.table import read_table
from facelt.errors import UserError

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
    rows = read_table(path, (identity, *(columns or ())))
    wanted = [name for name in rows.columns if name != identity] if columns is None else list(columns)
    people = [canonical(name) for name in rows.columns[identity]]
    table: Attributes = {name: {} for name in wanted}
    for name, place in ((name, place) for name in wanted for place in range(len(people))):
        value = rows.columns[name][place]
        if value and table[name].setdefault(people[place], value) != value:
            who = rows.columns[identity][place]
            raise UserError(f"{path}: line {rows.line_N[place]} gives {who!r} a second {name}: {value!r}")
    return table


def read_names(path: Path, column: str = "name") -> set[str]:
    """The canonical names in one column of a CSV file. Raises UserError naming the file."""
    return {canonical(name) for name in read_table(path, (column,)).columns[column] if name.strip()}


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
