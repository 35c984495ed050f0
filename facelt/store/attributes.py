"""Attribute tables: attributes by identity or image from CSV files and FaceScrub's actor files; binning of numbers.

N images, R rows of a table.
"""

import csv
import itertools
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facelt.config.audit import AttributeTablesConfig
from facelt.errors import UserError
from facelt.utils.tables import CsvRows, column_name, read_table


def bin_labels(edges: Sequence[float]) -> list[str]:
    """Returns the bin labels in order: `<18`, `18-<30`, ..., `>=45`; lower edges are inclusive."""
    texts = [f"{edge:g}" for edge in edges]
    between = [f"{low}-<{high}" for low, high in itertools.pairwise(texts)]
    return [f"<{texts[0]}", *between, f">={texts[-1]}"]


def bin_values(values: Sequence[str], edges: Sequence[float]) -> list[str]:
    """Returns the bin label of each number, empty for an empty text.

    Raises ValueError whose first argument is the position of the first text that is not a finite number.
    """
    number_N = np.full(len(values), np.nan)
    for index, text in enumerate(values):
        if not text.strip():
            continue
        try:
            number_N[index] = float(text)
        except ValueError:
            raise ValueError(index) from None
        if not np.isfinite(number_N[index]):
            raise ValueError(index)
    labels = bin_labels(edges)
    bin_N = np.searchsorted(np.asarray(edges, dtype=np.float64), number_N, side="right")
    return ["" if np.isnan(number) else labels[index] for number, index in zip(number_N, bin_N.tolist(), strict=True)]


# Columns that can identify a row, in the order in which they are tried.
IMAGE_COLUMN = "key"
IDENTITY_COLUMNS = ("identity", "name", "label")
# A column with more values is a number or a name, not a grouping.
MAX_GROUP_VALUES = 40

# Column -> one value per image, empty if unknown.
AttributeColumns = dict[str, list[str]]


def canonical_name(name: str) -> str:
    """Returns the normal form of an identity: ignores case, blanks or underscores between words and a final dot."""
    return "_".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split()).rstrip(".")


def actor_gender(actors: Path, actresses: Path) -> dict[str, str]:
    """Reads gender by canonical identity from FaceScrub's tab-separated files of actors and actresses.

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
    return {canonical_name(name) for name in rows.columns[first] if name.strip()}


def attribute_columns(
    config: AttributeTablesConfig,
    keys: Sequence[str] | None,
    identities: Sequence[str],
    bins: Mapping[str, Sequence[float]],
    store_columns: Mapping[str, Sequence[str]] = {},
) -> AttributeColumns:
    """Returns all attribute columns of N images of `identities`; `keys` are the image names, if images have names.

    `store_columns` are attributes in the embedding store. `bins` maps columns of numbers to bin edges.

    Raises UserError naming file, line and column: conflicting rows, a column in two files, a table without any of the
    identities, a text that is not a number, bins of an unknown column.
    """
    columns: AttributeColumns = {}
    for name, values in store_columns.items():
        if column_name(name) in columns:
            raise UserError(f"items.csv: the column {name!r} is there twice, but for case or spaces; rename one")
        columns[column_name(name)] = list(values)
    canonical_identities = [canonical_name(identity) for identity in identities]
    for path in config.tables:
        rows = read_table(path)
        rows.columns.update(_bin_table(path, rows, bins))
        _join(columns, _match_rows(path, rows, config.key, keys, canonical_identities), path)
    if config.actors and config.actresses:
        gender = actor_gender(config.actors, config.actresses)
        _join(columns, {"gender": [gender.get(identity, "") for identity in canonical_identities]}, config.actors)
    for name, values in store_columns.items():
        if (name := column_name(name)) in bins:
            columns[name] = _bin_store_column(name, values, bins[name])
    if missing := sorted(bins.keys() - columns.keys()):
        column_names = ", ".join(columns) or "none"
        raise UserError(f"bins.{missing[0]}: no table has a column {missing[0]!r}; known columns are {column_names}")
    return columns


def listed_images(path: Path, key: str | None = None) -> dict[str, str]:
    """Returns the identity of each image that a table lists in its column `key`, empty if it has no identities.

    `key` names another column of images.

    Returns none without such a column. Raises UserError as `read_table` does.
    """
    columns = read_table(path).columns
    keys = [key.strip() for key in columns.get(key or IMAGE_COLUMN, ())]
    identities = next((columns[name] for name in IDENTITY_COLUMNS if name in columns), [""] * len(keys))
    return {key: identity.strip() for key, identity in zip(keys, identities, strict=False) if key}


def join_spellings(columns: AttributeColumns, names: Sequence[str]) -> list[str]:
    """Replaces, in these columns, values that are equal but for case and surrounding spaces by their commonest one.

    Surrounding spaces are removed from all values. Returns a note for each value with several spellings.
    """
    notes = []
    for name in names:
        counts = Counter(columns[name])
        spellings: dict[str, list[str]] = {}
        for spelling in counts:
            spellings.setdefault(same_value(spelling), []).append(spelling)
        replacement = {}
        for alike in spellings.values():
            commonest = max(alike, key=counts.__getitem__).strip()
            replacement |= dict.fromkeys(alike, commonest)
            if len(alike) > 1 and commonest:
                listed = ", ".join(f"{spelling!r} ({counts[spelling]:,})" for spelling in alike)
                notes.append(f"{name}: {listed} are one group, {commonest!r}.")
        columns[name] = [replacement[value] for value in columns[name]]
    return notes


def same_value(text: str) -> str:
    """Returns a key that is equal for values that differ in case and surrounding spaces only."""
    return text.strip().casefold()


def check_groupable(columns: AttributeColumns, by: Sequence[str]) -> None:
    """Raises UserError if a column to group by is missing or has too many values."""
    for name in by:
        if name not in columns:
            raise UserError(f"by: no column {name!r}; known columns are {', '.join(columns) or 'none'}")
        if (values := len(set(columns[name]))) > MAX_GROUP_VALUES:
            raise UserError(
                f"by: column {name!r} has {values} values, more than {MAX_GROUP_VALUES}: bin a number with "
                f"bins.{name} (--bins {name}=18,30,45), or choose another column"
            )


def _join(columns: AttributeColumns, more: AttributeColumns, path: Path) -> None:
    if repeated := sorted(columns.keys() & more.keys()):
        raise UserError(f"{path}: column {repeated[0]!r} is already in another file; remove it from one of them")
    columns |= more


def _match_rows(
    path: Path, rows: CsvRows, key: str | None, keys: Sequence[str] | None, identities: Sequence[str]
) -> AttributeColumns:
    """Returns the columns of a table for each image, matched by the column that identifies a row."""
    if key is not None and key not in rows.columns:
        raise UserError(f"{path}: no column {key!r}; its columns are {', '.join(rows.columns)}")
    if key is not None:
        tries = [(key, keys or (), str.strip), (key, identities, canonical_name)]
    else:
        tries = [
            (IMAGE_COLUMN, keys or (), str.strip),
            *((name, identities, canonical_name) for name in IDENTITY_COLUMNS),
        ]
        tries = [attempt for attempt in tries if attempt[0] in rows.columns]
    names = list(dict.fromkeys(name for name, _, _ in tries))
    if not names:
        raise UserError(
            f"{path}: no column identifies the rows; set attributes.key, or name the column one of "
            f"{', '.join((IMAGE_COLUMN, *IDENTITY_COLUMNS))}"
        )
    for name, names_N, normalise in tries:
        value_R = [normalise(value) for value in rows.columns[name]]
        first_row = {value: row for row, value in reversed(list(enumerate(value_R)))}
        if first_row.keys().isdisjoint(names_N):
            continue
        for row, value in enumerate(value_R):
            if first_row[value] != row:
                _refuse_conflict(path, rows, first_row[value], row, name)
        others = [column for column in rows.columns if column not in (IMAGE_COLUMN, *IDENTITY_COLUMNS, key)]
        return {column: _values_of(rows.columns[column], first_row, names_N) for column in others}
    raise UserError(f"{path}: has none of the audited identities in its column {' or '.join(map(repr, names))}")


def _values_of(values: Sequence[str], first_row: Mapping[str, int], names_N: Sequence[str]) -> list[str]:
    return [values[first_row[name]] if name in first_row else "" for name in names_N]


def _refuse_conflict(path: Path, rows: CsvRows, first: int, second: int, key: str) -> None:
    for name, values in rows.columns.items():
        is_attribute = name != key and name not in IDENTITY_COLUMNS
        if is_attribute and same_value(values[first]) != same_value(values[second]):
            raise UserError(
                f"{path}: line {rows.line_N[second]} gives {rows.columns[key][second]!r} a second {name}: "
                f"{values[second]!r}; line {rows.line_N[first]} says {values[first]!r}"
            )


def _bin_table(path: Path, rows: CsvRows, bins: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    columns = {}
    for name in bins.keys() & rows.columns.keys():
        try:
            columns[name] = bin_values(rows.columns[name], bins[name])
        except ValueError as error:
            line, text = rows.line_N[error.args[0]], rows.columns[name][error.args[0]]
            raise UserError(f"{path}: line {line}, column {name!r}: {text!r} is not a number") from None
    return columns


def _bin_store_column(name: str, values: Sequence[str], edges: Sequence[float]) -> list[str]:
    try:
        return bin_values(values, edges)
    except ValueError as error:
        text = values[error.args[0]]
        raise UserError(
            f"attributes of the embeddings: row {error.args[0] + 1}, column {name!r}: {text!r} is not a number"
        ) from None
