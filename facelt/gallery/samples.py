"""What is enrolled, column by column, checked at the door. N samples, D feature.

Embeddings that somebody made elsewhere: an embedding store, a .npy with a table beside it, or a CSV table.

N samples, D feature.

Embeddings of samples with their numbers, and the digest of any set of them. N samples, D feature.
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelt.errors import UserError
from facelt.gallery.model_spec import Contract
from facelt.store.store import EmbeddingStore

# Longer ones are a mistake in a table; Milvus has limits of its own above these.
NAME_LENGTH = 512
NOTE_LENGTH = 8192
# Shorter than this a direction is rounding noise.
LEAST_LENGTH = 1e-6
# How far float32 values rounded from a vector of length one are from that.
ROUNDED_LENGTH = 1e-6
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: keys, people and embeddings [N,D]; `metadata` and `provenance` map texts to JSON values, each [N]."""

    keys: Sequence[str]
    people: Sequence[str]
    embedding_ND: np.ndarray
    metadata: Sequence[Mapping[str, Any]] = ()
    provenance: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for name in ("people", "embedding_ND"):
            if len(getattr(self, name)) != len(self.keys):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.keys)} keys")
        for name in ("metadata", "provenance"):
            notes = getattr(self, name) or [{}] * len(self.keys)
            if len(notes) != len(self.keys):
                raise ValueError(f"{name} has {len(notes)} entries for {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, rows: slice) -> "Samples":
        """Some of them."""
        columns = (self.keys, self.people, self.embedding_ND, self.metadata, self.provenance)
        return Samples(*(column[rows] for column in columns))

    def notes(self) -> tuple[list[str], list[str]]:
        """Metadata and provenance as JSON texts, [N] each."""
        return tuple(
            [_note(key, value) for key, value in zip(self.keys, column or [{}] * len(self), strict=True)]
            for column in (self.metadata, self.provenance)
        )


def checked(samples: Samples, contract: Contract) -> Samples:
    """The same with float32 embeddings, of length one where the kind is compared by direction.

    Raises UserError naming the first sample whose embedding is of another dimension, not finite or of length zero,
    whose key or person is empty, overlong or no text, or whose key occurs twice.
    """
    refuse_repeated(samples.keys)
    for what, names in (("key", samples.keys), ("person", samples.people)):
        for name in names:
            check_name(name, what)
    rows_ND = checked_rows(samples.embedding_ND, contract, lambda row: f"sample {samples.keys[row]!r}")
    return Samples(samples.keys, samples.people, rows_ND, samples.metadata, samples.provenance)


def refuse_repeated(keys: Sequence[str]) -> None:
    """Raises UserError naming the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UserError(f"the key {key!r} occurs more than once; every sample needs its own key")
        seen.add(key)


def checked_rows(row_ND: np.ndarray, contract: Contract, name=lambda row: f"probe {row}") -> np.ndarray:
    """Contiguous float32 [N,D], of length one where the kind is compared by direction; `name(row)` is for messages.

    Raises UserError naming the first row that is not finite or of length zero, or the dimension where it is another.
    """
    row_ND = np.asarray(row_ND)
    if row_ND.ndim != 2 or row_ND.shape[1] != contract.dimension:
        shape = " x ".join(map(str, row_ND.shape))
        raise UserError(f"embeddings of {shape} values: this gallery holds {contract}")
    if row_ND.dtype.kind not in "fiu":
        raise UserError(f"embeddings of type {row_ND.dtype}: they must be numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        row_ND = np.array(row_ND, dtype=np.float32, order="C")
        length_N = np.sqrt(np.einsum("nd,nd->n", row_ND, row_ND, dtype=np.float64))
    for is_bad_N, reason in ((~np.isfinite(length_N), "is not finite"), (length_N < LEAST_LENGTH, "has length zero")):
        if is_bad_N.any():
            raise UserError(f"{name(int(np.argmax(is_bad_N)))}: its embedding {reason}; leave it out or embed it again")
    if contract.is_unit:
        # Those that have it already stay as they are, to the last bit, from one gallery to the next.
        other_N = np.abs(length_N - 1) > ROUNDED_LENGTH
        row_ND[other_N] /= length_N[other_N, None]
    return row_ND


def check_name(name: str, what: str) -> None:
    """Raises UserError unless it is a text of one to NAME_LENGTH letters that a database can hold."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or _UNUSABLE.search(name):
        shown = ascii(name[:40] if isinstance(name, str) else name)
        raise UserError(f"{what} {shown}: must be a text of 1 to {NAME_LENGTH} letters without NUL or half characters")


def _note(key: str, value: Mapping[str, Any]) -> str:
    if not value:
        return "{}"
    try:
        text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {key!r}: its metadata cannot be kept as JSON ({error})") from error
    if len(text) > NOTE_LENGTH:
        raise UserError(f"sample {key!r}: its metadata takes {len(text)} letters, allowed are {NOTE_LENGTH}")
    return text


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


_MODULUS = 1 << 256


class SampleRows(NamedTuple):
    """Embeddings float32 [N,D] with the numbers of their samples and of these samples' people, int64 [N]."""

    sample_N: np.ndarray
    person_N: np.ndarray
    row_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_N)

    def digest(self) -> int:
        """The sum of each sample's SHA-256 of both numbers and the embedding: whatever their order, it is the same."""
        id_N2 = np.stack([self.sample_N, self.person_N], axis=1).astype("<i8")
        row_ND = np.ascontiguousarray(self.row_ND, dtype="<f4")
        digests = (hashlib.sha256(b"".join(pair)).digest() for pair in zip(id_N2, row_ND, strict=True))
        return sum(int.from_bytes(digest, "big") for digest in digests) % _MODULUS


def add_digest(digest: str, change: int) -> str:
    """A digest, as hex, after samples whose digest is `change` came or, negative, went."""
    return f"{(int(digest, 16) + change) % _MODULUS:064x}"
