"""Samples to enrol, validated; readers of labelled embeddings; index rows and their digest. N samples, D feature."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelt.errors import UserError
from facelt.gallery.model_spec import ModelSpec
from facelt.store.arrays import read_embedding_array
from facelt.store.image_names import first_repeated
from facelt.store.store import EmbeddingStore

# Longer names are a mistake in a table; the limits of Milvus are higher.
MAX_NAME_LENGTH = 512
MAX_METADATA_LENGTH = 8192
# Smallest norm of an embedding: the direction of a shorter one is rounding noise.
MIN_NORM = 1e-6
# Deviation of the norm of a unit vector rounded to float32.
UNIT_NORM_TOLERANCE = 1e-6
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Samples:
    """Columns of N samples: keys, people, embeddings [N,D]; `metadata` and `provenance` are JSON objects, [N] each."""

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
            values = getattr(self, name) or [{}] * len(self.keys)
            if len(values) != len(self.keys):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: slice) -> "Samples":
        """Returns a slice of the samples."""
        columns = (self.keys, self.people, self.embedding_ND, self.metadata, self.provenance)
        return Samples(*(column[rows] for column in columns))

    def json_columns(self) -> tuple[list[str], list[str]]:
        """Returns metadata and provenance as JSON texts, [N] each."""
        return tuple(
            [_json_text(key, value) for key, value in zip(self.keys, column or [{}] * len(self), strict=True)]
            for column in (self.metadata, self.provenance)
        )


def validated_samples(samples: Samples, model_spec: ModelSpec) -> Samples:
    """Returns the samples with float32 embeddings, normalised for unit kinds.

    Raises UserError naming the first sample with an embedding of another dimension, not finite or zero, with an invalid
    key or person, or with a duplicate key.
    """
    refuse_duplicate_keys(samples.keys)
    for column, names in (("key", samples.keys), ("person", samples.people)):
        for name in names:
            refuse_invalid_name(name, column)
    rows_ND = validated_embeddings(samples.embedding_ND, model_spec, lambda row: f"sample {samples.keys[row]!r}")
    return Samples(samples.keys, samples.people, rows_ND, samples.metadata, samples.provenance)


def refuse_duplicate_keys(keys: Sequence[str]) -> None:
    """Raises UserError naming the first duplicate key."""
    if (repeated := first_repeated(keys)) is not None:
        raise UserError(f"the key {repeated!r} occurs more than once; every sample needs its own key")


def validated_embeddings(row_ND: np.ndarray, model_spec: ModelSpec, name=lambda row: f"probe {row}") -> np.ndarray:
    """Returns contiguous float32 embeddings [N,D], normalised for unit kinds; `name(row)` is for messages.

    Raises UserError naming the first row that is not finite or is zero, and on another dimension.
    """
    row_ND = np.asarray(row_ND)
    if row_ND.ndim != 2 or row_ND.shape[1] != model_spec.dimension:
        shape = " x ".join(map(str, row_ND.shape))
        raise UserError(f"embeddings of shape {shape}: this gallery holds {model_spec}")
    if row_ND.dtype.kind not in "fiu":
        raise UserError(f"embeddings of type {row_ND.dtype}: must be numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        row_ND = np.array(row_ND, dtype=np.float32, order="C")
        norm_N = np.sqrt(np.einsum("nd,nd->n", row_ND, row_ND, dtype=np.float64))
    for is_invalid_N, reason in ((~np.isfinite(norm_N), "is not finite"), (norm_N < MIN_NORM, "is zero")):
        if is_invalid_N.any():
            raise UserError(
                f"{name(int(np.argmax(is_invalid_N)))}: its embedding {reason}; leave it out or embed it again"
            )
    if model_spec.is_unit:
        # Unit vectors are not divided again, so they keep every bit when copied from gallery to gallery.
        is_other_N = np.abs(norm_N - 1) > UNIT_NORM_TOLERANCE
        row_ND[is_other_N] /= norm_N[is_other_N, None]
    return row_ND


def refuse_invalid_name(name: str, column: str) -> None:
    """Raises UserError unless `name` is a string of 1 to MAX_NAME_LENGTH characters that a database can store."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or _UNUSABLE.search(name):
        shown = ascii(name[:40] if isinstance(name, str) else name)
        raise UserError(
            f"{column} {shown}: must be a string of 1 to {MAX_NAME_LENGTH} characters without NUL or lone surrogates"
        )


def _json_text(key: str, value: Mapping[str, Any]) -> str:
    if not value:
        return "{}"
    try:
        text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {key!r}: its metadata cannot be stored as JSON ({error})") from error
    if len(text) > MAX_METADATA_LENGTH:
        raise UserError(
            f"sample {key!r}: its metadata has {len(text)} characters, at most {MAX_METADATA_LENGTH} are allowed"
        )
    return text


_VALUE = re.compile(r"e([0-9]+)")


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """Embeddings [N,D] with keys, people and other columns [N], reachability [N] or None, and their model.

    `model_spec` is None if the file does not name the model; `origin` names the source.
    """

    keys: Sequence[str]
    people: Sequence[str]
    embedding_ND: np.ndarray
    attributes: Mapping[str, Sequence[str]]
    reachability_N: np.ndarray | None
    model_spec: ModelSpec | None
    origin: Mapping[str, str]

    def samples(self) -> Samples:
        """Returns samples to enrol; other columns become metadata, the origin becomes provenance."""
        names = list(self.attributes)
        columns = zip(*self.attributes.values(), strict=True) if names else [()] * len(self.keys)
        metadata = [{name: text for name, text in zip(names, row, strict=True) if text} for row in columns]
        return Samples(self.keys, self.people, self.embedding_ND, metadata, [self.origin] * len(self.keys))


def read_labelled_embeddings(path: Path, kind: str, table: Path | None = None) -> LabelledEmbeddings:
    """Reads an embedding store, a .npy file with a CSV `table` of its rows, or a .csv file.

    Tables have a column `key`, an optional column `person` (needed to enrol) and any others; in a .csv file, columns
    e0, e1, ... hold the embedding. Raises UserError naming the file at fault.
    """
    if path.suffix == ".npy":
        return _read_array(path, table)
    if path.suffix == ".csv":
        return _read_csv(path)
    store = EmbeddingStore.open(path)
    return LabelledEmbeddings(
        store.keys,
        store.identities,
        store.embedding(kind),
        store.attributes,
        store.reachability,
        ModelSpec.of_store(store, kind),
        {"store": str(path)},
    )


def _read_array(path: Path, table: Path | None) -> LabelledEmbeddings:
    if table is None:
        raise UserError(f"{path}: its rows have no names; pass --table, a CSV with the columns key and person")
    columns = _read_table(table)
    value_ND = read_embedding_array(path)
    if len(columns["key"]) != len(value_ND):
        raise UserError(f"{table}: has {len(columns['key'])} rows, {path} has {len(value_ND)}")
    return _with_labels(columns, value_ND, {"array": str(path)})


def _read_csv(path: Path) -> LabelledEmbeddings:
    columns = _read_table(path)
    index_of = {name: int(match[1]) for name in columns if (match := _VALUE.fullmatch(name))}
    if not index_of or sorted(index_of.values()) != list(range(len(index_of))):
        raise UserError(f"{path}: needs consecutive columns e0, e1, ... with the embedding")
    value_DN = []
    for name in sorted(index_of, key=index_of.__getitem__):
        try:
            value_DN.append(np.array(columns.pop(name), dtype=np.float32))
        except ValueError as error:
            raise UserError(f"{path}: column {name} holds a value that is not a number ({error})") from error
    return _with_labels(columns, np.stack(value_DN, axis=1), {"table": str(path)})


def _read_table(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error
    if "key" not in header or len(set(header)) != len(header):
        raise UserError(f"{path}: the header must have a column key and no duplicate names")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}: row {number} has {len(row)} values, the header has {len(header)}")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _with_labels(columns: dict[str, list[str]], value_ND: np.ndarray, origin: Mapping[str, str]) -> LabelledEmbeddings:
    keys = columns.pop("key")
    people = columns.pop("person", None) or [""] * len(keys)
    return LabelledEmbeddings(keys, people, value_ND, columns, None, None, origin)


_MODULUS = 1 << 256


class SampleRows(NamedTuple):
    """Embeddings float32 [N,D] with the ids of their samples and people, int64 [N] each."""

    sample_N: np.ndarray
    person_N: np.ndarray
    row_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_N)

    def digest(self) -> int:
        """Returns the sum of the SHA-256 of each sample (ids and embedding), which does not depend on their order."""
        id_N2 = np.stack([self.sample_N, self.person_N], axis=1).astype("<i8")
        row_ND = np.ascontiguousarray(self.row_ND, dtype="<f4")
        return _digest_sum(b"".join(pair) for pair in zip(id_N2, row_ND, strict=True))


def text_digest(records: Iterable[Sequence[Any]]) -> int:
    """Returns the sum of the SHA-256 of each record as JSON, which does not depend on their order."""
    # A damaged value may be bytes, which JSON lacks.
    return _digest_sum(json.dumps(record, default=repr).encode() for record in records)


def _digest_sum(messages: Iterable[bytes]) -> int:
    digests = (hashlib.sha256(message).digest() for message in messages)
    return sum(int.from_bytes(digest, "big") for digest in digests) % _MODULUS


def add_digest(digest: str, change: int) -> str:
    """Returns a digest, as hex, after adding samples with the digest `change` or, if negative, removing them."""
    return f"{(int(digest, 16) + change) % _MODULUS:064x}"
