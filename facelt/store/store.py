"""Embedding store: folder layout, reader and resumable writer.

    <kind>.npy         float16 or float32 [N,D], one file for each kind of embedding
    reachability.npy   float32 [N], if the model has a memory
    items.csv          key, identity and any attribute columns, one line per image
    meta.json          schema, rows, kinds with their dimensions, dtype, and what the writer adds (model hash,
                       preprocessing)

N images, n rows of one write, M selected rows, D feature.
"""

import csv
import gc
import hashlib
import io
import json
import re
import reprlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.store.arrays import map_npy
from recordio_tools.atomic_io import sync, write_text
from recordio_tools.bounded_io import open_regular_file, read_json

STORE_SCHEMA = "facelt.store/1"
EMBEDDING_KINDS = get_args(EmbeddingKind)
# Kinds with rows of unit norm; the norm of `meta` is below one and encodes how familiar the image is.
UNIT_KINDS = frozenset({"direct", "meta_unit"})
# Stored as float16, unit vectors are off by at most 1e-3; a larger deviation is an error.
_UNIT_TOLERANCE = 0.01
StoreDtype = Literal["float16", "float32"]
STORE_DTYPES = get_args(StoreDtype)
_RESERVED_META = frozenset({"schema", "rows", "kinds", "dtype", "reachability"})

ITEMS_FILE = "items.csv"
META_FILE = "meta.json"
REACHABILITY_FILE = "reachability.npy"

LeftOut = Mapping[int, tuple[str, str]]
"""Name of an unusable image and reason, by row."""
_COPY_ROWS = 65536


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
    if len(set(keys)) != len(keys):
        seen_keys: set[str] = set()
        repeated = next(key for key in keys if key in seen_keys or seen_keys.add(key))
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
        with open(open_regular_file(path), newline="", encoding="utf-8") as file:  # noqa: PTH123, a descriptor
            lines = csv.reader(file, strict=True)
            header = next(lines, None)
            if not header or header[:2] != ["key", "identity"] or len(set(header)) != len(header):
                raise UserError(f"{path}: the header must be key, identity and distinct attribute names")
            rows = list(lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a store needs it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if ragged is not None:
        raise UserError(f"{path}: line {ragged} has {len(rows[ragged - 2])} fields, the header has {len(header)}")
    key_N, *columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    # Identities and attributes repeat: equal strings are shared.
    table = dict(zip(header, [list(key_N), *map(_share_strings, columns)], strict=True))
    check_keys(table["key"], str(path))
    return table


def _share_strings(text_N: Sequence[str]) -> list[str]:
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
    return _json_text({**meta, **layout})


def _json_text(meta: Mapping[str, Any]) -> str:
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


_PROGRESS = re.compile(r"progress(?:-(\d+)-(\d+))?\.json")


class StoreWriter:
    """Writes rows in order into `<path>.partial`, which becomes `path` when all rows are there.

    `kinds` maps each kind to its dimension; `meta` describes the model and its preprocessing (JSON). An unfinished
    store of the same items, kinds and meta is resumed at `rows_done`. `finish` drops the rows of unusable images and
    lists these under `left_out` in meta.json.

    Several processes can write one store, each its `share` of the rows: one creates the writer before the others do,
    and finishes the store after them.

    Raises UserError if `path` exists, if `<path>.partial` belongs to other items or another model, on repeated keys and
    if the disk refuses; ValueError on an unknown kind, a reserved name or unequal lengths.
    """

    def __init__(
        self,
        path: str | Path,
        keys: Sequence[str],
        identities: Sequence[str | int],
        kinds: Mapping[str, int],
        meta: Mapping[str, Any],
        *,
        attributes: Mapping[str, Sequence[str]] | None = None,
        reachability: bool = False,
        dtype: str = "float16",
        share: range | None = None,
    ) -> None:
        self.path = Path(path)
        self.keys = list(keys)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._is_whole = share is None
        self.share = range(len(self.keys)) if share is None else share
        self.rows_done = self.share.start
        self._left_out: dict[int, tuple[str, str]] = {}
        self._arrays = {kind: (np.dtype(dtype), (dimension,)) for kind, dimension in kinds.items()}
        if reachability:
            self._arrays["reachability"] = (np.dtype("float32"), ())
        meta_json = meta_text(len(self.keys), kinds, dtype, reachability, meta)
        items_csv = items_text(self.keys, [str(identity) for identity in identities], attributes or {})
        self._plan = hashlib.sha256(f"{meta_json}\0{items_csv}".encode()).hexdigest()
        if self.path.exists():
            raise UserError(f"{self.path}: already exists; remove it or write the store elsewhere")
        try:
            if self.partial.exists():
                self._resume()
            else:
                self._begin(meta_json, items_csv)
        except OSError as error:
            raise UserError(f"{error.filename or self.partial}: cannot be written ({error.strerror})") from error

    def write(
        self,
        start: int,
        embeddings: Mapping[str, np.ndarray],
        reachability: np.ndarray | None = None,
        left_out: LeftOut = MappingProxyType({}),
    ) -> None:
        """Appends the rows from `start` on: {kind: [n,D]} for every kind and, if the store has it, reachability [n].

        The embeddings are those of the next n + len(left_out) rows except `left_out`, in order.

        Raises UserError naming the image whose embedding is not finite or, for `direct` and `meta_unit`, not of unit
        length, and if the disk refuses; ValueError on rows out of order or a wrong shape.
        """
        if start != self.rows_done:
            raise ValueError(f"rows are written in order: the next is {self.rows_done}, not {start}")
        arrays = dict(embeddings) if reachability is None else {**embeddings, "reachability": reachability}
        if set(arrays) != set(self._arrays):
            raise ValueError(f"this store takes {sorted(self._arrays)}, not {sorted(arrays)}")
        rows = len(next(iter(arrays.values()))) + len(left_out)
        if start + rows > self.share.stop:
            raise ValueError(
                f"{rows} rows from {start} are more than the store's share, which ends at {self.share.stop}"
            )
        row_n = np.array([row for row in range(start, start + rows) if row not in left_out], dtype=np.int64)
        pieces = {name: self._checked(name, np.asarray(values), row_n) for name, values in arrays.items()}
        try:
            for name, values in pieces.items():
                block = values
                if left_out:
                    block = np.zeros((rows, *values.shape[1:]), dtype=values.dtype)
                    block[row_n - start] = values
                with self._file(name).open("r+b") as file:
                    file.seek(self._offset(name, start))
                    file.write(block.tobytes())
                    sync(file)
            self._left_out |= left_out
            self._save_progress(start + rows)
        except OSError as error:
            raise UserError(f"{self.partial}: cannot be written ({error.strerror})") from error

    def left_out(self) -> dict[int, tuple[str, str]]:
        """Returns the unusable images of all shares so far."""
        return {row: image for path in self._shares() for row, image in self._read_progress(path)[2].items()}

    def finish(self) -> Path:
        """Gives the store its name. Raises ValueError while rows are missing, UserError if the disk refuses."""
        if self.rows_done != self.share.stop:
            raise ValueError(f"{self.path}: {self.rows_done} of {self.share.stop} rows are written")
        try:
            if any(self._file(name).stat().st_size != self._offset(name, len(self.keys)) for name in self._arrays):
                raise ValueError(f"{self.path}: rows of another share are missing")
            if left_out := self.left_out():
                self._compact(left_out)
            else:
                for path in self._shares():
                    path.unlink()
                sync(self.partial)
                self.partial.rename(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        return self.path

    def _begin(self, meta_json: str, items_csv: str) -> None:
        # Built under a third name: an existing `.partial` can always be resumed.
        fresh = self._new_folder(
            {META_FILE: meta_json, ITEMS_FILE: items_csv, self._progress.name: self._progress_text(self.rows_done)}
        )
        for name, (dtype, row_shape) in self._arrays.items():
            with (fresh / f"{name}.npy").open("wb") as file:
                file.write(_npy_header(dtype, (len(self.keys), *row_shape)))
                sync(file)
        fresh.rename(self.partial)

    def _new_folder(self, texts: Mapping[str, str]) -> Path:
        fresh = self.path.with_name(self.path.name + ".new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
        for name, text in texts.items():
            with (fresh / name).open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                sync(file)
        return fresh

    def _compact(self, left_out: LeftOut) -> None:
        """Writes the finished store without some rows; `.partial` stays until it has its name."""
        is_kept_N = np.ones(len(self.keys), dtype=bool)
        is_kept_N[list(left_out)] = False
        columns = {
            name: list(compress(column, is_kept_N)) for name, column in read_items(self.partial / ITEMS_FILE).items()
        }
        keys, identities = columns.pop("key"), columns.pop("identity")
        meta = read_json(self.partial / META_FILE)
        meta |= {"rows": len(keys), "left_out": meta.get("left_out", {}) | dict(left_out.values())}
        fresh = self._new_folder({META_FILE: _json_text(meta), ITEMS_FILE: items_text(keys, identities, columns)})
        for name, (dtype, row_shape) in self._arrays.items():
            array = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
            with (fresh / self._file(name).name).open("wb") as file:
                file.write(_npy_header(dtype, (len(keys), *row_shape)))
                for start in range(0, len(array), _COPY_ROWS):
                    rows = slice(start, start + _COPY_ROWS)
                    file.write(array[rows][is_kept_N[rows]].tobytes())
                sync(file)
        sync(fresh)
        fresh.rename(self.path)
        shutil.rmtree(self.partial)

    def _resume(self) -> None:
        for path, rows in self._shares().items():
            if path != self._progress and max(rows.start, self.share.start) < min(rows.stop, self.share.stop):
                raise UserError(
                    f"{self.partial}: begun by another number of processes or with another batch size; "
                    "resume with the same ones, or remove it to start again"
                )
        try:
            plan, rows_done, left_out = self._read_progress(self._progress)
        except FileNotFoundError:
            # Without shares only `finish` removes the file, once all rows are written; a share may not have begun.
            plan, rows_done, left_out = self._plan_on_disk(), len(self.keys) if self._is_whole else self.share.start, {}
        if plan != self._plan:
            raise UserError(
                f"{self.partial}: an unfinished store of other images, another model or other settings; "
                "remove it to start again or write the store elsewhere"
            )
        for name in self._arrays:
            if rows_done > self.share.start and self._file(name).stat().st_size < self._offset(name, rows_done):
                raise UserError(f"{self._file(name)}: shorter than recorded; remove {self.partial} to start again")
        self.rows_done, self._left_out = rows_done, left_out

    def _read_progress(self, path: Path) -> tuple[str, int, dict[int, tuple[str, str]]]:
        """The plan's digest, rows done and rows left out. Raises UserError, and FileNotFoundError."""
        try:
            progress = read_json(path)
            left_out = {int(row): (str(name), str(reason)) for row, (name, reason) in progress["left_out"].items()}
            return progress["plan"], int(progress["rows_done"]), left_out
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; remove {self.partial} to start again") from error

    @property
    def _progress(self) -> Path:
        """The file with the progress of this share."""
        suffix = "" if self._is_whole else f"-{self.share.start}-{self.share.stop}"
        return self.partial / f"progress{suffix}.json"

    def _shares(self) -> dict[Path, range]:
        """The rows of each share, by its progress file."""
        matches = {path: _PROGRESS.fullmatch(path.name) for path in self.partial.glob("progress*.json")}
        return {
            path: range(int(match[1]), int(match[2])) if match[1] else range(len(self.keys))
            for path, match in matches.items()
            if match
        }

    def _plan_on_disk(self) -> str:
        texts = [(self.partial / name).read_bytes() for name in (META_FILE, ITEMS_FILE)]
        return hashlib.sha256(b"\0".join(texts)).hexdigest()

    def _checked(self, name: str, values: np.ndarray, row_n: np.ndarray) -> np.ndarray:
        dtype, row_shape = self._arrays[name]
        if values.shape != (len(row_n), *row_shape):
            raise ValueError(f"{name} has the shape {list(values.shape)}, expected {[len(row_n), *row_shape]}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=dtype)
        finite_n = np.isfinite(stored).all(axis=tuple(range(1, stored.ndim)))
        if not finite_n.all():
            key = self.keys[row_n[np.argmin(finite_n)]]
            raise UserError(f"{self.path}: {name} of image {key!r} is not finite in {dtype}; the model has diverged")
        if name in UNIT_KINDS:
            length_n = np.linalg.norm(stored.astype(np.float32), axis=1)
            off_n = np.abs(length_n - 1.0)
            if len(row_n) and off_n.max() > _UNIT_TOLERANCE:
                worst = int(np.argmax(off_n))
                raise UserError(
                    f"{self.path}: {name} of image {self.keys[row_n[worst]]!r} has length {length_n[worst]:.4g}; "
                    "embeddings of this kind have length one"
                )
        return stored

    def _file(self, name: str) -> Path:
        return self.partial / (REACHABILITY_FILE if name == "reachability" else f"{name}.npy")

    def _offset(self, name: str, row: int) -> int:
        dtype, row_shape = self._arrays[name]
        header = len(_npy_header(dtype, (len(self.keys), *row_shape)))
        return header + row * dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))

    def _progress_text(self, rows_done: int) -> str:
        return json.dumps({"plan": self._plan, "rows_done": rows_done, "left_out": self._left_out})

    def _save_progress(self, rows_done: int) -> None:
        write_text(self._progress, self._progress_text(rows_done))
        self.rows_done = rows_done


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The .npy header alone. Rows follow by plain writes: a full disk under a memory map would kill the process."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


class RowSubset:
    """Rows of an array or of another subset, given by position; a slice or an array of positions copies."""

    def __init__(self, value_ND: "np.ndarray | RowSubset", position_M: np.ndarray) -> None:
        is_nested = isinstance(value_ND, RowSubset)
        self._value_ND = value_ND._value_ND if is_nested else value_ND
        self._position_M = value_ND._position_M[position_M] if is_nested else position_M
        self.shape = (len(self._position_M), self._value_ND.shape[1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._value_ND[self._position_M[rows]]
