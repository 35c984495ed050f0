"""Numbers as groups: `--bins age=18,30,45` makes under 18, 18 to under 30, 30 to under 45, and 45 and over.

Who the people are: attributes by identity or by image, from CSV files and FaceScrub's actor and actress files.

N images, R rows of a table.
"""

import csv
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facelt.config.audit import AttributeTablesConfig
from facelt.errors import UserError
from facelt.utils.tables import CsvRows, read_table


def bin_labels(edges: Sequence[float]) -> list[str]:
    """The names of the bins that the edges part, in their order; each begins with its lower edge, which belongs to it.

    Whole edges are shown as `18-<30`: a number of 29.5 belongs there.
    """
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{low}-<{high}" for low, high in itertools.pairwise(shown)]
    return [f"<{shown[0]}", *between, f">={shown[-1]}"]


def binned(values: Sequence[str], edges: Sequence[float]) -> list[str]:
    """The bin of each number, empty where there is none.

    Raises ValueError whose first argument is the position of the first text that is no finite number.
    """
    number_N = np.full(len(values), np.nan)
    for place, text in enumerate(values):
        if not text.strip():
            continue
        try:
            number_N[place] = float(text)
        except ValueError:
            raise ValueError(place) from None
        if not np.isfinite(number_N[place]):
            raise ValueError(place)
    labels = bin_labels(edges)
    bin_N = np.searchsorted(np.asarray(edges, dtype=np.float64), number_N, side="right")
    return ["" if np.isnan(number) else labels[place] for number, place in zip(number_N, bin_N.tolist(), strict=True)]


# The columns that may say whose a row is, in the order in which they are tried.
IMAGE_KEY = "key"
IDENTITY_KEYS = ("identity", "name", "label")
# A column with more values is a number or a name, not a grouping.
MAX_VALUES = 40

# column -> one value for each image, empty where it is not known
Columns = dict[str, list[str]]


def canonical(name: str) -> str:
    """One spelling of an identity: case, blanks or underscores between words and a final dot make no difference."""
    return "_".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split()).rstrip(".")


def actor_gender(actors: Path, actresses: Path) -> dict[str, str]:
    """Gender by identity (canonical) from FaceScrub's two tab-separated files (header, name first), actors first.

    Raises UserError naming the file, or the name that is in both.
    """
    male, female = _names(actors), _names(actresses)
    if both := sorted(male & female):
        raise UserError(f"{actresses}: {both[0]!r} is also in {actors.name}; remove it from one of them")
    return dict.fromkeys(sorted(male), "male") | dict.fromkeys(sorted(female), "female")


def _names(path: Path) -> set[str]:
    rows = read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    first = next(iter(rows.columns))
    if first.strip().casefold() != "name":
        raise UserError(f"{path}: the first line must begin with the column 'name', tab-separated")
    return {canonical(name) for name in rows.columns[first] if name.strip()}


def attribute_columns(
    config: AttributeTablesConfig,
    keys: Sequence[str] | None,
    identities: Sequence[str],
    bins: Mapping[str, Sequence[float]],
    own: Mapping[str, Sequence[str]] = {},
) -> Columns:
    """Every column that is known of N images (`keys`, where images have names) of `identities`.

    `own` are columns the embedding store itself holds. `bins` turns columns of numbers into groups.

    Raises UserError naming file, line and column: a row given twice with different values, a column from two places, a
    table that knows nobody, a number that is none, bins of a column that no table has.
    """
    columns: Columns = {name: list(values) for name, values in own.items()}
    people = [canonical(identity) for identity in identities]
    for path in config.tables:
        rows = read_table(path)
        rows.columns.update(_binned(path, rows, bins))
        _join(columns, _looked_up(path, rows, config.key, keys, people), path)
    if config.actors and config.actresses:
        gender = actor_gender(config.actors, config.actresses)
        _join(columns, {"gender": [gender.get(person, "") for person in people]}, config.actors)
    for name in bins.keys() & own.keys():
        columns[name] = _own_binned(name, own[name], bins[name])
    if missing := sorted(bins.keys() - columns.keys()):
        known = ", ".join(columns) or "none"
        raise UserError(f"bins.{missing[0]}: no table has a column {missing[0]!r}; known columns are {known}")
    return columns


def check_groupable(columns: Columns, by: Sequence[str]) -> None:
    """Raise UserError where a column to group by is missing or has too many values to be a grouping."""
    for name in by:
        if name not in columns:
            raise UserError(f"by: no column {name!r}; known columns are {', '.join(columns) or 'none'}")
        if (values := len(set(columns[name]))) > MAX_VALUES:
            raise UserError(
                f"by: column {name!r} has {values} values, more than {MAX_VALUES}: bin a number with "
                f"bins.{name} (--bins {name}=18,30,45), or choose another column"
            )


def _join(columns: Columns, more: Columns, path: Path) -> None:
    if twice := sorted(columns.keys() & more.keys()):
        raise UserError(f"{path}: column {twice[0]!r} is already given by another file; remove it from one of them")
    columns |= more


def _looked_up(
    path: Path, rows: CsvRows, key: str | None, keys: Sequence[str] | None, people: Sequence[str]
) -> Columns:
    """The table's columns for each image, by the column that says whose a row is."""
    if key is not None and key not in rows.columns:
        raise UserError(f"{path}: has no column {key!r}; its columns are {', '.join(rows.columns)}")
    if key is not None:
        tries = [(key, keys or (), str), (key, people, canonical)]
    else:
        tries = [(IMAGE_KEY, keys or (), str), *((name, people, canonical) for name in IDENTITY_KEYS)]
        tries = [one for one in tries if one[0] in rows.columns]
    names = list(dict.fromkeys(name for name, _, _ in tries))
    if not names:
        raise UserError(
            f"{path}: no column says whose a row is; name it (attributes.key) or call it one of "
            f"{', '.join((IMAGE_KEY, *IDENTITY_KEYS))}"
        )
    for name, wanted, spelled in tries:
        value_R = [spelled(value) for value in rows.columns[name]]
        place = {value: row for row, value in reversed(list(enumerate(value_R)))}
        if place.keys().isdisjoint(wanted):
            continue
        for row, value in enumerate(value_R):
            if place[value] != row:
                _check_same(path, rows, place[value], row, name)
        others = [column for column in rows.columns if column not in (IMAGE_KEY, *IDENTITY_KEYS, key)]
        return {column: _picked(rows.columns[column], place, wanted) for column in others}
    raise UserError(f"{path}: knows none of the audited people by its column {' or '.join(map(repr, names))}")


def _picked(values: Sequence[str], place: Mapping[str, int], wanted: Sequence[str]) -> list[str]:
    return [values[place[one]].strip() if one in place else "" for one in wanted]


def _check_same(path: Path, rows: CsvRows, first: int, second: int, key: str) -> None:
    for name, values in rows.columns.items():
        if name != key and name not in IDENTITY_KEYS and values[first] != values[second]:
            raise UserError(
                f"{path}: line {rows.line_N[second]} gives {rows.columns[key][second]!r} a second {name}: "
                f"{values[second]!r}; line {rows.line_N[first]} says {values[first]!r}"
            )


def _binned(path: Path, rows: CsvRows, bins: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    found = {}
    for name in bins.keys() & rows.columns.keys():
        try:
            found[name] = binned(rows.columns[name], bins[name])
        except ValueError as error:
            line, text = rows.line_N[error.args[0]], rows.columns[name][error.args[0]]
            raise UserError(f"{path}: line {line}, column {name!r}: {text!r} is no number to be binned") from None
    return found


def _own_binned(name: str, values: Sequence[str], edges: Sequence[float]) -> list[str]:
    try:
        return binned(values, edges)
    except ValueError as error:
        text = values[error.args[0]]
        raise UserError(f"items.csv: row {error.args[0] + 1}, column {name!r}: {text!r} is no number") from None
