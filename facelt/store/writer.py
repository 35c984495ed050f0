"""Resumable writer of embedding stores.

N images, n rows of one write, D feature.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.store.store import (
    EMBEDDING_KINDS,
    ITEMS_FILE,
    META_FILE,
    REACHABILITY_FILE,
    UNIT_KINDS,
    encode_meta,
    items_text,
    meta_text,
    read_items,
)
from facelt.utils.folder_lock import require_writable
from facelt.utils.output_folder import check_output_folder
from recordio_tools.atomic_io import replace_folder, sync, write_text
from recordio_tools.bounded_io import read_json

LeftOut = Mapping[int, tuple[str, str]]
"""Name of an unusable image and reason, by row."""
_STORE_FILES = (META_FILE, ITEMS_FILE, REACHABILITY_FILE, *(f"{kind}.npy" for kind in EMBEDDING_KINDS))
# Stored as float16, unit vectors are off by at most 1e-3; a larger deviation is an error.
_UNIT_TOLERANCE = 0.01
_COPY_ROWS = 65536
_PROGRESS = re.compile(r"progress(?:-(\d+)-(\d+))?\.json")


class StoreWriter:
    """Writes rows in order into `<path>.partial`, which becomes `path` when all rows are there.

    `kinds` maps each kind to its dimension; `meta` describes the model and its preprocessing (JSON). An unfinished
    store of the same items, kinds and meta is resumed at `rows_done`. `finish` drops the rows of unusable images and
    lists these under `left_out` in meta.json.

    Several processes can write one store, each its `share` of the rows: one creates the writer before the others do,
    and finishes the store after them.

    With `overwrite` a finished store at `path` is replaced whole, once this one is complete.

    Raises UserError if `path` is neither new nor empty, nor a store to be replaced, if `<path>.partial` belongs to
    other items or another model, on repeated keys and if the disk refuses; ValueError on an unknown kind, a reserved
    name or unequal lengths.
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
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
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
        require_writable(self.path)
        check_output_folder(self.path, _STORE_FILES, overwrite)
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
                self._give_name(self.partial)
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
        fresh = self._new_folder({META_FILE: encode_meta(meta), ITEMS_FILE: items_text(keys, identities, columns)})
        for name, (dtype, row_shape) in self._arrays.items():
            array = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
            with (fresh / self._file(name).name).open("wb") as file:
                file.write(_npy_header(dtype, (len(keys), *row_shape)))
                for start in range(0, len(array), _COPY_ROWS):
                    rows = slice(start, start + _COPY_ROWS)
                    file.write(array[rows][is_kept_N[rows]].tobytes())
                sync(file)
        sync(fresh)
        self._give_name(fresh)
        shutil.rmtree(self.partial)

    def _give_name(self, folder: Path) -> None:
        """Renames a complete store to `path`, in place of the store that it replaces."""
        replace_folder(folder, self.path, self._overwrite)
        shutil.rmtree(folder, ignore_errors=True)  # after a swap, the store that was replaced

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
