"""Embedding store: folder layout and reader.

    <kind>.npy         float16 or float32 [N,D], one file for each kind of embedding
    reachability.npy   float32 [N], if the model has a memory
    items.csv          key, identity and any attribute columns, one line per image
    meta.json          schema, rows, kinds with their dimensions, dtype, and what the writer adds (model hash,
                       preprocessing)

N images, M selected rows, D feature.
"""

import csv
import gc
import io
import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from facelt.config.base import EmbeddingKind, StoreDtype
from facelt.errors import UserError
from facelt.store.arrays import map_npy
from facelt.store.image_names import count_distinct, first_repeated
from recordio_tools.bounded_io import open_regular_file, read_json

STORE_SCHEMA = "facelt.store/1"
EMBEDDING_KINDS = get_args(EmbeddingKind)
# Kinds with rows of unit norm; the norm of `meta` is below one and encodes how familiar the image is.
UNIT_KINDS = frozenset({"direct", "meta_unit"})
STORE_DTYPES = get_args(StoreDtype)
_RESERVED_META = frozenset({"schema", "rows", "kinds", "dtype", "reachability"})

ITEMS_FILE = "items.csv"
META_FILE = "meta.json"
REACHABILITY_FILE = "reachability.npy"


def items_text(keys: Sequence[str], identities: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> str:
    """Returns the text of items.csv; equal items give equal bytes, so the text can be hashed.

    Raises UserError on an empty or repeated key, ValueError on columns of unequal length or a reserved column name.
    """
    for name, column in {"identity": identities, **attributes}.items():
        if len(column) != len(keys):
            raise ValueError(f"column {name!r} has {len(column)} values for {len(keys)} keys")
    if clash := {"key", "identity"} & set(attributes):
        raise ValueError(f"attribute columns must not be named {sorted(clash)}")
    check_keys(keys, "the list of images")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "identity", *attributes])
    writer.writerows(zip(keys, identities, *attributes.values(), strict=True))
    return text.getvalue()


def check_keys(keys: Sequence[str], where: str) -> None:
    """Raises UserError, naming `where` and the key, unless all keys are distinct and non-empty."""
    if (repeated := first_repeated(keys)) is not None:
        raise UserError(f"{where}: the key {repeated!r} occurs more than once; every image needs its own key")
    if "" in keys:
        raise UserError(f"{where}: entry {keys.index('')} has an empty key")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses garbage collection: a million rows are a million small lists that the collector would scan repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def read_items(path: Path) -> dict[str, list[str]]:
    """Reads the columns of items.csv by name, `key` and `identity` first. Raises UserError naming file and line."""
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            content = file.read()
        header, columns = _split_plain(path, content) or _parse_quoted(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a store needs it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    key_N, *columns = columns
    # Identities and attributes repeat: equal strings are shared.
    table = dict(zip(header, [list(key_N), *map(_share_strings, columns)], strict=True))
    check_keys(table["key"], str(path))
    return table


def _check_header(path: Path, header: Sequence[str]) -> None:
    if list(header[:2]) != ["key", "identity"] or len(set(header)) != len(header):
        raise UserError(f"{path}: the header must be key, identity and distinct attribute names")


def _split_plain(path: Path, content: bytes) -> tuple[list[str], list[Sequence[str]]] | None:
    """Returns header and columns of a table without quotes whose lines have equally many fields; None for others.

    The csv module reads these and names what is wrong; it takes several times as long.
    """
    if any(mark in content for mark in (b'"', b"\r", b"\0")) or not content.endswith(b"\n"):
        return None
    byte_N = np.frombuffer(content, dtype=np.uint8)
    (end_N,) = np.nonzero((byte_N == ord(",")) | (byte_N == ord("\n")))
    width = content.count(b",", 0, content.index(b"\n")) + 1
    if len(end_N) % width or np.diff(end_N, prepend=-1).max() > csv.field_size_limit():
        return None
    is_line_end_RC = (byte_N[end_N] == ord("\n")).reshape(-1, width)
    if not is_line_end_RC[:, -1].all() or is_line_end_RC[:, :-1].any():
        return None
    fields = content.decode().replace("\n", ",").split(",")
    del fields[-1]
    _check_header(path, fields[:width])
    return fields[:width], [fields[width + column :: width] for column in range(width)]


def _parse_quoted(path: Path, content: bytes) -> tuple[list[str], list[Sequence[str]]]:
    lines = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    header = next(lines, [])
    _check_header(path, header)
    rows = list(lines)
    ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if ragged is not None:
        raise UserError(f"{path}: line {ragged} has {len(rows[ragged - 2])} fields, the header has {len(header)}")
    return header, list(zip(*rows, strict=True)) if rows else [() for _ in header]


def _share_strings(text_N: Sequence[str]) -> list[str]:
    if count_distinct(text_N) * 2 > len(text_N):
        return list(text_N)
    interned: dict[str, str] = {}
    return list(map(interned.setdefault, text_N, text_N))


def meta_text(rows: int, kinds: Mapping[str, int], dtype: str, reachability: bool, meta: Mapping[str, Any]) -> str:
    """Returns the text of meta.json. Raises ValueError on an unknown kind or dtype or a reserved key in `meta`."""
    if not kinds or set(kinds) - set(EMBEDDING_KINDS) or any(dimension < 1 for dimension in kinds.values()):
        raise ValueError(f"kinds must map some of {EMBEDDING_KINDS} to a dimension, not {dict(kinds)}")
    if dtype not in STORE_DTYPES:
        raise ValueError(f"dtype must be one of {STORE_DTYPES}, not {dtype!r}")
    if clash := _RESERVED_META & set(meta):
        raise ValueError(f"meta must not set {sorted(clash)}: the store sets them")
    layout = {"schema": STORE_SCHEMA, "rows": rows, "kinds": dict(kinds), "dtype": dtype, "reachability": reachability}
    return encode_meta({**meta, **layout})


def encode_meta(meta: Mapping[str, Any]) -> str:
    """Returns the JSON of meta.json; equal metadata give equal bytes."""
    return json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_meta(path: Path) -> dict[str, Any]:
    """Reads meta.json and validates the keys of the store. Raises UserError naming the file and the key."""
    try:
        meta = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a store needs it") from error
    except ValueError as error:
        raise UserError(f"{path}: not a description of a store ({error})") from error
    if not isinstance(meta, dict) or meta.get("schema") != STORE_SCHEMA:
        schema = meta.get("schema") if isinstance(meta, dict) else meta
        raise UserError(f"{path}: schema is {reprlib.repr(schema)}, this version reads {STORE_SCHEMA!r}")
    kinds = meta.get("kinds")
    if not isinstance(kinds, dict) or not kinds or set(kinds) - set(EMBEDDING_KINDS):
        raise UserError(
            f"{path}: kinds is {reprlib.repr(kinds)}; it must map some of {', '.join(EMBEDDING_KINDS)} to a dimension"
        )
    counts = {"rows": meta.get("rows"), **{f"kinds.{kind}": dimension for kind, dimension in kinds.items()}}
    for key, value in counts.items():
        if type(value) is not int or not (0 if key == "rows" else 1) <= value < 2**31:
            raise UserError(f"{path}: {key} is {reprlib.repr(value)}; it must be an integer below 2^31")
    if type(meta.get("reachability")) is not bool:
        raise UserError(f"{path}: reachability is {reprlib.repr(meta.get('reachability'))}; it must be true or false")
    return meta


@dataclass(frozen=True, eq=False)
class EmbeddingStore:
    """Opened, memory-mapped embedding store; created by `EmbeddingStore.open`.

    `keys` and `identities` are lists of N strings, `attributes` maps column names to such lists, `meta` is meta.json.
    """

    path: Path
    keys: list[str]
    identities: list[str]
    attributes: dict[str, list[str]]
    meta: dict[str, Any]
    _embeddings: dict[str, np.ndarray] = field(repr=False)
    reachability: np.ndarray | None = field(repr=False, default=None)

    @classmethod
    def open(cls, path: str | Path) -> "EmbeddingStore":
        """Opens the store in folder `path` without reading the embeddings. Raises UserError naming the file at fault.

        Readers of the rows check that the values are finite.
        """
        path = Path(path)
        if not path.is_dir():
            partial = path.with_name(path.name + ".partial")
            hint = f"; {partial.name} is unfinished, run the embedding again to continue" if partial.is_dir() else ""
            raise UserError(f"{path}: no such embedding store{hint}")
        meta = read_meta(path / META_FILE)
        items = read_items(path / ITEMS_FILE)
        rows = meta["rows"]
        if len(items["key"]) != rows:
            raise UserError(f"{path / ITEMS_FILE}: lists {len(items['key'])} items, {META_FILE} says {rows}")
        embeddings = {
            kind: map_npy(path / f"{kind}.npy", (rows, dimension), STORE_DTYPES, META_FILE)
            for kind, dimension in meta["kinds"].items()
        }
        reachability = None
        if meta["reachability"]:
            reachability = map_npy(path / REACHABILITY_FILE, (rows,), ("float32",), META_FILE)
        keys, identities = items.pop("key"), items.pop("identity")
        return cls(path, keys, identities, items, meta, embeddings, reachability)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of embedding in this store."""
        return tuple(self._embeddings)

    def embedding(self, kind: str) -> np.ndarray:
        """Returns the memory-mapped, read-only array [N,D] of one kind. Raises UserError if the store lacks it."""
        if kind not in self._embeddings:
            raise UserError(f"{self.path}: has no embeddings of kind {kind!r}, only {', '.join(self.kinds)}")
        return self._embeddings[kind]


class RowSubset:
    """Rows of an array or of another subset, given by position; a slice or an array of positions copies."""

    def __init__(self, value_ND: "np.ndarray | RowSubset", position_M: np.ndarray) -> None:
        is_nested = isinstance(value_ND, RowSubset)
        self._value_ND = value_ND._value_ND if is_nested else value_ND
        self._position_M = value_ND._position_M[position_M] if is_nested else position_M
        self.shape = (len(self._position_M), self._value_ND.shape[1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._value_ND[self._position_M[rows]]
