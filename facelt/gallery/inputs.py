"""Embeddings that somebody made elsewhere: an embedding store, a .npy with a table beside it, or a CSV table.

N samples, D feature.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.gallery.contract import Contract
from facelt.gallery.samples import Samples
from facelt.store import EmbeddingStore

_VALUE = re.compile(r"e([0-9]+)")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings [N,D] with keys and people [N], other columns, where the images looked how familiar, and whose.

    `contract` is None where the file does not say which model made it; `origin` says where all this is from.
    """

    keys: Sequence[str]
    people: Sequence[str]
    embedding_ND: np.ndarray
    attributes: Mapping[str, Sequence[str]]
    reachability_N: np.ndarray | None
    contract: Contract | None
    origin: Mapping[str, str]

    def samples(self) -> Samples:
        """To be enrolled: the other columns are metadata, the origin is the provenance."""
        names = list(self.attributes)
        columns = zip(*self.attributes.values(), strict=True) if names else [()] * len(self.keys)
        metadata = [{name: text for name, text in zip(names, row, strict=True) if text} for row in columns]
        return Samples(self.keys, self.people, self.embedding_ND, metadata, [self.origin] * len(self.keys))


def read_embedded(path: Path, kind: str, table: Path | None = None) -> Embedded:
    """A store's folder, a .npy whose rows `table` names, or a .csv. Raises UserError naming the file at fault.

    Tables have a column `key`, one `person` (may be missing where somebody is only to be identified) and any others; in
    a .csv without a .npy e0, e1, ... are the embedding.
    """
    if path.suffix == ".npy":
        return _read_array(path, table)
    if path.suffix == ".csv":
        return _read_csv(path)
    store = EmbeddingStore.open(path)
    return Embedded(
        store.keys,
        store.identities,
        store.embedding(kind),
        store.attributes,
        store.reachability,
        Contract.of_store(store, kind),
        {"store": str(path)},
    )


def _read_array(path: Path, table: Path | None) -> Embedded:
    if table is None:
        raise UserError(f"{path}: does not name its rows; give --table, a CSV with the columns key and person")
    try:
        value_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as .npy ({error})") from error
    if not isinstance(value_ND, np.ndarray) or value_ND.ndim != 2:
        raise UserError(f"{path}: must hold one matrix, a row for each sample")
    columns = _read_table(table)
    if len(columns["key"]) != len(value_ND):
        raise UserError(f"{table}: has {len(columns['key'])} rows, {path} has {len(value_ND)}")
    return _named(columns, value_ND, {"array": str(path)})


def _read_csv(path: Path) -> Embedded:
    columns = _read_table(path)
    places = {name: int(match[1]) for name in columns if (match := _VALUE.fullmatch(name))}
    if not places or sorted(places.values()) != list(range(len(places))):
        raise UserError(f"{path}: needs columns e0, e1, ... without a gap, the values of the embedding")
    value_DN = []
    for name in sorted(places, key=places.__getitem__):
        try:
            value_DN.append(np.array(columns.pop(name), dtype=np.float32))
        except ValueError as error:
            raise UserError(f"{path}: column {name} holds what is no number ({error})") from error
    return _named(columns, np.stack(value_DN, axis=1), {"table": str(path)})


def _read_table(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error
    if "key" not in header or len(set(header)) != len(header):
        raise UserError(f"{path}: needs a first line with the column key, and every name once")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}: row {number} has {len(row)} values, the header has {len(header)}")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _named(columns: dict[str, list[str]], value_ND: np.ndarray, origin: Mapping[str, str]) -> Embedded:
    keys = columns.pop("key")
    people = columns.pop("person", None) or [""] * len(keys)
    return Embedded(keys, people, value_ND, columns, None, None, origin)
