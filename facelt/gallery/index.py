"""Embeddings in one file that is mapped, not read: derived from the truth and bound to its revision by hashes.

A folder with the rows (`rows-*.f32`), their numbers (`ids-*.i64`: the row's own and its person's) and `bound.json`,
which names both and says what they belong to. Rows that it does not count are no part of the matrix. Files that
somebody else touched are told by their stamp (inode, size and times), and then by the hashes of their chunks.

N rows, M some of them, D feature.

The search indexes of a gallery, kept in step with the truth: one of samples, one of people's mean templates.

N rows, M some of them, D feature, P probes, T neighbours.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Nearest, best_of_everybody, joined
from facelt.gallery.samples import LEAST_LENGTH, SampleRows, add_digest
from facelt.gallery.sqlite import State, Truth
from facelt.search.engine import Engine
from facelt.search.exact import cosine_error_bound, inner_product_error_bound
from facelt.search.factory import open_engine
from facelt.search.top_k import top_k, top_k_prevalidated
from recordio_tools.atomic_io import write_text

SCHEMA = "facelt.gallery-index/1"
BOUND = "bound.json"
# Rows that are hashed together.
CHUNK = 4096
_ID = np.dtype("<i8")
_ID_BYTES = 2 * _ID.itemsize
_ROW = np.dtype("<f4")


@dataclass(frozen=True)
class Binding:
    """Which gallery's which revision a matrix is of: see truth.State."""

    gallery: str
    revision: int
    removals: int
    digest: str

    @classmethod
    def of(cls, state: State) -> "Binding":
        """That of a gallery as it stands."""
        return cls(state.gallery, state.revision, state.removals, state.digest)


class Matrix:
    """An open matrix: `rows` with the mapped arrays, `binding`, `reach` and `stretch`.

    `reach` is the greatest length of a row, `stretch` how far lengths are from one at most.
    """

    def __init__(self, folder: Path, bound: dict) -> None:
        self.folder = folder
        self.binding = Binding(**bound["binding"])
        self.dimension, self.count, self.last = bound["dimension"], bound["rows"], bound["last"]
        self.reach, self.stretch = bound["reach"], bound["stretch"]
        self._chunks: list[str] = bound["chunks"]
        self._sealed: list[list[int]] = bound["stamp"]
        self._names: dict[str, str] = bound["files"]
        self._is_noted = True
        self._map()

    @classmethod
    def build(cls, folder: Path, binding: Binding, dimension: int, batches: Iterable[SampleRows]) -> "Matrix":
        """A new one of these rows in place of any other; who has that one open keeps it."""
        folder.mkdir(mode=0o700, exist_ok=True)
        salt = secrets.token_hex(4)
        names = {"rows": f"rows-{salt}.f32", "ids": f"ids-{salt}.i64"}
        for name in names.values():
            os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        counts = {"dimension": dimension, "rows": 0, "last": 0, "reach": 0.0, "stretch": 0.0}
        made = cls(folder, {"binding": asdict(binding), **counts, "chunks": [], "files": names, "stamp": []})
        for batch in batches:
            made._write(batch)
        made._seal(binding, range(made._chunk_count))
        made.tidy()
        return made

    @classmethod
    def open(cls, folder: Path, dimension: int) -> "Matrix | None":
        """The one in a folder; None where it is missing, damaged or was changed by anybody else."""
        try:
            bound = json.loads((folder / BOUND).read_text(encoding="utf-8"))
            if bound["schema"] != SCHEMA or bound["dimension"] != dimension:
                return None
            if any(Path(name).name != name for name in bound["files"].values()):
                return None
            opened = cls(folder, bound)
            stamp = opened._stamp()
            if stamp != opened._sealed and opened._hash(range(opened._chunk_count)) != opened._chunks:
                return None
            # Files that were copied are others with the same content.
            opened._sealed, opened._is_noted = stamp, stamp == opened._sealed
            return opened
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def rows(self) -> SampleRows:
        """Mapped: sample and person numbers int64 [N], rows float32 [N,D]."""
        return SampleRows(self._id_N2[:, 0], self._id_N2[:, 1], self._row_ND)

    def is_untouched(self) -> bool:
        """Whether nobody wrote to the files since this was opened or changed here."""
        try:
            return self._stamp() == self._sealed
        except OSError:
            return False

    def change(self, gone_M: np.ndarray, batches: Iterable[SampleRows], binding: Binding) -> bool:
        """Takes the rows of these samples away and adds others; False, to be built anew, where that is not `binding`'s.

        In place, since a million rows are 2 GB: the last rows move to the places of those that go, and what is left
        behind is zeros. Whoever has the matrix open goes on without the new rows, and learns from the truth that rows
        went.
        """
        digest = self.binding.digest
        changed = set()
        if len(gone_M):
            digest, changed = self._drop(np.isin(self._id_N2[:, 0], gone_M), digest)
        first = self.count // CHUNK
        for batch in batches:
            self._write(batch)
            digest = add_digest(digest, batch.digest())
        if digest != binding.digest:
            return False
        self._seal(binding, sorted({*changed, *range(first, self._chunk_count)}))
        return True

    def defects(self, digest: str) -> list[str]:
        """What is wrong in the files, of which everything is read; `digest` is that of the truth."""
        wrong = [] if self._hash(range(self._chunk_count)) == self._chunks else ["rows were changed: hashes differ"]
        found = sum(
            SampleRows(*(column[start : start + CHUNK] for column in self.rows)).digest()
            for start in range(0, self.count, CHUNK)
        )
        return wrong or ([] if add_digest("0", found) == digest else ["holds other samples than the gallery"])

    def tidy(self) -> None:
        """Removes files that a killed writer left, and notes the stamp of files that were copied."""
        if not self._is_noted:
            self._seal(self.binding, ())
        for path in self.folder.iterdir():
            if path.name not in (BOUND, *self._names.values()):
                with suppress(OSError):
                    path.unlink()

    @property
    def _row_bytes(self) -> int:
        return self.dimension * _ROW.itemsize

    @property
    def _chunk_count(self) -> int:
        return math.ceil(self.count / CHUNK)

    def _drop(self, is_gone_N: np.ndarray, digest: str) -> tuple[str, set[int]]:
        """The digest without these rows, and which chunks are others now."""
        gone = SampleRows(*(column[is_gone_N] for column in self.rows))
        kept = self.count - len(gone)
        hole_M = np.flatnonzero(is_gone_N[:kept])
        moved_M = kept + np.flatnonzero(~is_gone_N[kept:])
        with self._open("rows") as rows, self._open("ids") as ids:
            for source, target in zip(moved_M.tolist(), hole_M.tolist(), strict=True):
                os.pwrite(rows, self._row_ND[source].tobytes(), target * self._row_bytes)
                os.pwrite(ids, self._id_N2[source].tobytes(), target * _ID_BYTES)
            for start in range(kept, self.count, CHUNK):
                emptied = min(CHUNK, self.count - start)
                os.pwrite(rows, bytes(emptied * self._row_bytes), start * self._row_bytes)
                os.pwrite(ids, bytes(emptied * _ID_BYTES), start * _ID_BYTES)
        self.count = kept
        return add_digest(digest, -gone.digest()), set((hole_M // CHUNK).tolist())

    @contextmanager
    def _open(self, which: str) -> Iterator[int]:
        handle = os.open(self.folder / self._names[which], os.O_RDWR)
        try:
            yield handle
        finally:
            os.close(handle)

    def _map(self) -> None:
        # An empty file cannot be mapped.
        self._row_ND = np.empty((0, self.dimension), _ROW)
        self._id_N2 = np.empty((0, 2), _ID)
        if self.count:
            place = {name: self.folder / file for name, file in self._names.items()}
            self._row_ND = np.memmap(place["rows"], _ROW, "r", shape=(self.count, self.dimension))
            self._id_N2 = np.memmap(place["ids"], _ID, "r", shape=(self.count, 2))

    def _write(self, batch: SampleRows) -> None:
        id_M2 = np.stack([batch.sample_N, batch.person_N], axis=1).astype(_ID)
        row_MD = np.ascontiguousarray(batch.row_ND, dtype=_ROW)
        with self._open("rows") as rows, self._open("ids") as ids:
            _write_all(rows, row_MD, self.count * self._row_bytes)
            _write_all(ids, id_M2, self.count * _ID_BYTES)
        length_M = np.sqrt(np.einsum("md,md->m", row_MD, row_MD, dtype=np.float64))
        self.reach = max(self.reach, float(length_M.max(initial=0)))
        self.stretch = max(self.stretch, float(np.abs(length_M - 1).max(initial=0)))
        self.last = max(self.last, int(batch.sample_N.max(initial=0)))
        self.count += len(batch)

    def _seal(self, binding: Binding, changed_chunks: Iterable[int]) -> None:
        """Puts on disk what was written and then says that it counts."""
        for which in self._names:
            with self._open(which) as handle:
                os.fsync(handle)
        self._map()
        changed = [chunk for chunk in changed_chunks if chunk < self._chunk_count]
        self._chunks = (self._chunks + [""] * self._chunk_count)[: self._chunk_count]
        for chunk, digest in zip(changed, self._hash(changed), strict=True):
            self._chunks[chunk] = digest
        self.binding, self._sealed, self._is_noted = binding, self._stamp(), True
        bound = {
            **{"schema": SCHEMA, "binding": asdict(binding), "dimension": self.dimension, "rows": self.count},
            **{"last": self.last, "reach": self.reach, "stretch": self.stretch, "files": self._names},
            **{"chunks": self._chunks, "stamp": self._sealed},
        }
        write_text(self.folder / BOUND, json.dumps(bound))

    def _hash(self, chunks: Iterable[int]) -> list[str]:
        def of(chunk: int) -> str:
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            digest = hashlib.sha256(np.ascontiguousarray(self._id_N2[part]))
            digest.update(np.ascontiguousarray(self._row_ND[part]))
            return digest.hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(of, chunks))

    def _stamp(self) -> list[list[int]]:
        found = [(self.folder / name).stat() for name in self._names.values()]
        return [[one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in found]


def _write_all(handle: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values).cast("B") if values.size else memoryview(b"")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


# Samples that came after the index and are searched beside it.
MOST_LATE = 16384
# People whose templates are computed at once.
PEOPLE = 2048


class View:
    """One revision as it is searched: the rows of a matrix and those that came after it."""

    def __init__(self, matrix: Matrix, late: SampleRows, *, cosine: bool, engine: Engine) -> None:
        self._matrix, self._late = matrix, late
        self._cosine, self._engine = cosine, engine
        self.count = matrix.count + len(late)

    def nearest(self, query_PD: np.ndarray, t: int) -> Nearest:
        """The t most similar samples of each probe, by exact scores."""
        matrix = self._matrix
        sound = {"max_norm": matrix.reach, "max_norm_error": matrix.stretch}
        found = top_k_prevalidated(query_PD, matrix.rows.row_ND, t, cosine=self._cosine, engine=self._engine, **sound)
        result = _named(*found, matrix.rows)
        if len(self._late):
            score_SPT, place_SPT = top_k(query_PD, self._late.row_ND, t, cosine=self._cosine, engine=self._engine)
            result = joined([result, _named(score_SPT[0], place_SPT[0], self._late)], t)
        return result

    def crowded(self, query_D: np.ndarray, k: int) -> Nearest:
        """The best samples of everybody who can be among the k best people."""
        dimension = len(query_D)
        if self._cosine:
            slack = 2 * cosine_error_bound(dimension) + self._matrix.stretch
        else:
            slack = inner_product_error_bound(dimension) * float(np.linalg.norm(query_D)) * max(self._matrix.reach, 1.0)
        parts = [part for part in (self._matrix.rows, self._late) if len(part)]
        found = [
            best_of_everybody(query_D, part.row_ND, *part[:2], k, cosine=self._cosine, slack=1.01 * slack)
            for part in parts
        ]
        return joined(found)


class Index:
    """Both matrices in a gallery's folder; what changes them needs the gallery's lock."""

    def __init__(self, folder: Path, truth: Truth, engine: Engine | None = None) -> None:
        self._places = {False: folder / "index", True: folder / "templates"}
        self._truth = truth
        self._engine = engine
        self._open: dict[bool, Matrix | None] = {}

    def view(self, state: State, *, templates: bool) -> View | None:
        """What is searched at this state, at which the truth is being read; None where `follow` has to come first."""
        self._engine = self._engine or open_engine()
        if (matrix := self._fitting(state, templates)) is None:
            self._open[templates] = Matrix.open(self._places[templates], self._truth.contract.dimension)
            if (matrix := self._fitting(state, templates)) is None:
                return None
        late = [] if templates else list(self._truth.rows(matrix.last))
        return View(matrix, self._joined(late), cosine=self._truth.contract.is_unit, engine=self._engine)

    def follow(self, gone: Sequence[int] = (), *, templates: bool = False) -> None:
        """Brings a matrix to the truth's revision: by the samples that came and those `gone` since, or built anew."""
        state = self._truth.state()
        wanted, folder = Binding.of(state), self._places[templates]
        matrix = self._open.get(templates)
        if matrix is None or not matrix.is_untouched():
            matrix = Matrix.open(folder, self._truth.contract.dimension)
        if matrix is None or matrix.binding != wanted:
            if templates:
                self.follow()
                batches = self._templates(self._open[False].rows)
                matrix = Matrix.build(folder, wanted, self._truth.contract.dimension, batches)
            elif not (matrix and self._can_change(matrix, wanted, gone) and self._change(matrix, wanted, gone)):
                matrix = Matrix.build(folder, wanted, self._truth.contract.dimension, self._all(wanted))
        matrix.tidy()
        self._open[templates] = matrix

    def rebuild(self) -> None:
        """Builds the matrix of samples from the truth; that of templates goes, until it is asked for."""
        self._open = {}
        for folder in self._places.values():
            clear(folder)
        self.follow()

    def forget_templates(self) -> None:
        """Removes the matrix of templates, for it holds what was removed."""
        self._open.pop(True, None)
        clear(self._places[True])

    def defects(self) -> list[str]:
        """What is wrong in the index of samples, all of which is read."""
        matrix = Matrix.open(self._places[False], self._truth.contract.dimension)
        if matrix is None:
            return ["is missing or damaged"]
        state = self._truth.state()
        return matrix.defects(state.digest) if matrix.binding == Binding.of(state) else ["is of another revision"]

    def _fitting(self, state: State, templates: bool) -> Matrix | None:
        matrix, wanted = self._open.get(templates), Binding.of(state)
        if matrix is None or not matrix.is_untouched():
            return None
        if matrix.binding == wanted:
            return matrix
        is_late = not templates and 0 <= state.samples - matrix.count <= MOST_LATE
        return matrix if is_late and self._can_change(matrix, wanted, ()) else None

    @staticmethod
    def _can_change(matrix: Matrix, wanted: Binding, gone: Sequence[int]) -> bool:
        found = matrix.binding
        is_before = found.gallery == wanted.gallery and found.revision < wanted.revision
        # What an earlier removal took away is known to nobody any more.
        return is_before and found.removals + bool(gone) == wanted.removals

    def _change(self, matrix: Matrix, wanted: Binding, gone: Sequence[int]) -> bool:
        return matrix.change(np.array(gone, dtype=np.int64), self._truth.rows(matrix.last), wanted)

    def _all(self, wanted: Binding) -> Iterator[SampleRows]:
        """All samples. Raises UserError at their end where they are not those that were enrolled."""
        digest = add_digest("0", 0)
        for rows in self._truth.rows():
            digest = add_digest(digest, rows.digest())
            yield rows
        if digest != wanted.digest:
            raise UserError(
                f"{self._places[False].parent}: the database holds other embeddings than were enrolled; "
                "facelt gallery verify says more; go back to a snapshot"
            )

    def _joined(self, parts: Sequence[SampleRows]) -> SampleRows:
        empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, self._truth.contract.dimension), "<f4")
        return SampleRows(*map(np.concatenate, zip(empty, *parts, strict=True)))

    def _templates(self, rows: SampleRows) -> Iterator[SampleRows]:
        """Each person's mean embedding, under the person's number; of unit length where these are."""
        order_N = np.argsort(rows.person_N, kind="stable")
        people, first_C = np.unique(rows.person_N[order_N], return_index=True)
        end_C = np.append(first_C[1:], len(order_N))
        for start in range(0, len(people), PEOPLE):
            chosen = slice(start, min(start + PEOPLE, len(people)))
            mean_CD = np.stack(
                [
                    rows.row_ND[order_N[first:end]].mean(axis=0, dtype=np.float64)
                    for first, end in zip(first_C[chosen], end_C[chosen], strict=True)
                ]
            )
            length_C = np.linalg.norm(mean_CD, axis=1)
            # Opposite samples have no mean direction: by their template such people are found by nobody.
            kept_C = length_C >= LEAST_LENGTH
            if self._truth.contract.is_unit:
                mean_CD[kept_C] /= length_C[kept_C, None]
            number_C = people[chosen][kept_C].astype(np.int64)
            yield SampleRows(number_C, number_C, mean_CD[kept_C].astype(np.float32))


def clear(folder: Path) -> None:
    """Removes an index; it is derived."""
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink(missing_ok=True)


def _named(score_PT: np.ndarray, place_PT: np.ndarray, rows: SampleRows) -> Nearest:
    # Nothing found has the place -1, whatever row that is.
    if not len(rows):
        return Nearest(score_PT, place_PT, place_PT)
    sample_PT, person_PT = (np.where(place_PT >= 0, column[place_PT], -1) for column in rows[:2])
    return Nearest(score_PT, sample_PT, person_PT)
