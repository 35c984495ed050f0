"""Write an embedding store piece by piece, so that a killed run goes on where it stopped.

N images, n rows of one piece, D feature.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.store.layout import ITEMS, META, REACHABILITY, UNIT_KINDS, UNIT_TOLERANCE, items_text, meta_text
from facelt.whole_files import sync, write_text

_PROGRESS = re.compile(r"progress(?:-(\d+)-(\d+))?\.json")


class StoreWriter:
    """Writes `<path>.partial`, in order, and renames it to `path` when every row is there.

    `kinds` maps each kind to its dimension; `meta` is whatever describes the model and its preprocessing (JSON).
    An unfinished store of the same items, kinds and meta is continued at `rows_done`.

    Several processes write one store, each its own `share` of the rows. One begins it before the others join, and
    finishes it when all are done.

    Raises UserError where `path` exists, where `<path>.partial` belongs to other items or another model, on repeated
    keys and where the disk refuses; ValueError on a caller's mistake (unknown kind, reserved name, unequal lengths).
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

    def write(self, start: int, embeddings: Mapping[str, np.ndarray], reachability: np.ndarray | None = None) -> None:
        """Append rows start..start+n: {kind: [n,D]} for every kind and, where the store has it, reachability [n].

        Raises UserError naming the image whose embedding is not finite or, for `direct` and `meta_unit`, not of
        length one, and where the disk refuses; ValueError on rows out of order or a wrong shape.
        """
        if start != self.rows_done:
            raise ValueError(f"rows are written in order: the next is {self.rows_done}, not {start}")
        given = dict(embeddings) if reachability is None else {**embeddings, "reachability": reachability}
        if set(given) != set(self._arrays):
            raise ValueError(f"this store takes {sorted(self._arrays)}, not {sorted(given)}")
        rows = len(next(iter(given.values())))
        if start + rows > self.share.stop:
            raise ValueError(
                f"{rows} rows from {start} are more than the store's share, which ends at {self.share.stop}"
            )
        pieces = {name: self._checked(name, np.asarray(values), start, rows) for name, values in given.items()}
        try:
            for name, values in pieces.items():
                with self._file(name).open("r+b") as file:
                    file.seek(self._offset(name, start))
                    file.write(values.tobytes())
                    sync(file)
            self._save_progress(start + rows)
        except OSError as error:
            raise UserError(f"{self.partial}: cannot be written ({error.strerror})") from error

    def finish(self) -> Path:
        """Make the store visible under its name. Raises ValueError while rows are missing, UserError if it cannot."""
        if self.rows_done != self.share.stop:
            raise ValueError(f"{self.path}: {self.rows_done} of {self.share.stop} rows are written")
        try:
            if any(self._file(name).stat().st_size != self._offset(name, len(self.keys)) for name in self._arrays):
                raise ValueError(f"{self.path}: rows of another share are missing")
            for path in self._shares():
                path.unlink()
            sync(self.partial)
            self.partial.rename(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        return self.path

    def _begin(self, meta_json: str, items_csv: str) -> None:
        # Built under a third name: a `.partial` that exists is one that can be continued.
        fresh = self.path.with_name(self.path.name + ".new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
        texts = {META: meta_json, ITEMS: items_csv, self._progress.name: self._progress_text(self.rows_done)}
        for name, text in texts.items():
            with (fresh / name).open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                sync(file)
        for name, (dtype, row_shape) in self._arrays.items():
            with (fresh / f"{name}.npy").open("wb") as file:
                file.write(_npy_header(dtype, (len(self.keys), *row_shape)))
                sync(file)
        fresh.rename(self.partial)

    def _resume(self) -> None:
        for path, rows in self._shares().items():
            if path != self._progress and max(rows.start, self.share.start) < min(rows.stop, self.share.stop):
                raise UserError(
                    f"{self.partial}: was begun by another number of processes or with other batches; "
                    "go on with the same ones or remove it to start again"
                )
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
            plan, rows_done = progress["plan"], int(progress["rows_done"])
        except FileNotFoundError:
            # Of a whole store only `finish` removes the file, when every row is there; a share may be yet to begin.
            plan, rows_done = self._plan_on_disk(), len(self.keys) if self._is_whole else self.share.start
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._progress}: is damaged; remove {self.partial} to start again") from error
        if plan != self._plan:
            raise UserError(
                f"{self.partial}: is an unfinished store of other images, another model or other settings; "
                "remove it to start again or write the store elsewhere"
            )
        for name in self._arrays:
            if rows_done > self.share.start and self._file(name).stat().st_size < self._offset(name, rows_done):
                raise UserError(f"{self._file(name)}: is shorter than recorded; remove {self.partial} to start again")
        self.rows_done = rows_done

    @property
    def _progress(self) -> Path:
        """How far this share is."""
        suffix = "" if self._is_whole else f"-{self.share.start}-{self.share.stop}"
        return self.partial / f"progress{suffix}.json"

    def _shares(self) -> dict[Path, range]:
        """The files in which each share notes how far it is, and its rows."""
        found = {path: _PROGRESS.fullmatch(path.name) for path in self.partial.glob("progress*.json")}
        return {
            path: range(int(match[1]), int(match[2])) if match[1] else range(len(self.keys))
            for path, match in found.items()
            if match
        }

    def _plan_on_disk(self) -> str:
        texts = [(self.partial / name).read_bytes() for name in (META, ITEMS)]
        return hashlib.sha256(b"\0".join(texts)).hexdigest()

    def _checked(self, name: str, values: np.ndarray, start: int, rows: int) -> np.ndarray:
        dtype, row_shape = self._arrays[name]
        if values.shape != (rows, *row_shape):
            raise ValueError(f"{name} has the shape {list(values.shape)}, expected {[rows, *row_shape]}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=dtype)
        finite_n = np.isfinite(stored).all(axis=tuple(range(1, stored.ndim)))
        if not finite_n.all():
            key = self.keys[start + int(np.argmin(finite_n))]
            raise UserError(f"{self.path}: {name} of image {key!r} is not finite in {dtype}; the model has diverged")
        if name in UNIT_KINDS:
            length_n = np.linalg.norm(stored.astype(np.float32), axis=1)
            off_n = np.abs(length_n - 1.0)
            if rows and off_n.max() > UNIT_TOLERANCE:
                worst = int(np.argmax(off_n))
                raise UserError(
                    f"{self.path}: {name} of image {self.keys[start + worst]!r} has length {length_n[worst]:.4g}; "
                    "embeddings of this kind have length one"
                )
        return stored

    def _file(self, name: str) -> Path:
        return self.partial / (REACHABILITY if name == "reachability" else f"{name}.npy")

    def _offset(self, name: str, row: int) -> int:
        dtype, row_shape = self._arrays[name]
        header = len(_npy_header(dtype, (len(self.keys), *row_shape)))
        return header + row * dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))

    def _progress_text(self, rows_done: int) -> str:
        return json.dumps({"plan": self._plan, "rows_done": rows_done})

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
