"""Memory-mapped search indexes of a gallery, derived from the database and bound to its revision by hashes.

An index is a folder with the rows (`rows-*.f32`), their ids (`ids-*.i64`: sample and person) and `bound.json`, which
names both files, their revision and their number of rows; rows beyond that number are ignored. Files changed by other
programs are detected by their stamp (inode, size and times) and then by the hashes of their chunks. There is one index
of samples, and one of templates (the mean of the samples of a person).

N rows, M some of them, D feature, P probes, T neighbours, C people.
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
from facelt.gallery.backend import NearestSamples, exhaustive_search, merge_nearest
from facelt.gallery.sample_store import GalleryState, SampleStore
from facelt.gallery.samples import MIN_NORM, SampleRows, add_digest
from facelt.search.engine import Engine
from facelt.search.exact import cosine_error_bound, inner_product_error_bound
from facelt.search.factory import open_engine
from facelt.search.top_k import top_k, top_k_prevalidated
from recordio_tools.atomic_io import write_text

INDEX_SCHEMA = "facelt.gallery-index/1"
METADATA_FILE = "bound.json"
# Rows that are hashed together.
CHUNK_ROWS = 4096
_ID = np.dtype("<i8")
_ID_BYTES = 2 * _ID.itemsize
_ROW = np.dtype("<f4")


@dataclass(frozen=True)
class IndexVersion:
    """Gallery and revision of an index: see `GalleryState`."""

    gallery: str
    revision: int
    removals: int
    digest: str

    @classmethod
    def of(cls, state: GalleryState) -> "IndexVersion":
        """Returns the version of a gallery state."""
        return cls(state.gallery, state.revision, state.removals, state.digest)


class MappedIndex:
    """Memory-mapped index of embeddings with the ids of samples and people.

    `max_norm` is the largest norm of a row, `max_norm_error` the largest deviation of a norm from one.
    """

    def __init__(self, folder: Path, metadata: dict) -> None:
        self.folder = folder
        self.version = IndexVersion(**metadata["binding"])
        self.dimension, self.count, self.last = metadata["dimension"], metadata["rows"], metadata["last"]
        self.max_norm, self.max_norm_error = metadata["reach"], metadata["stretch"]
        self._chunks: list[str] = metadata["chunks"]
        self._stamp: list[list[int]] = metadata["stamp"]
        self._names: dict[str, str] = metadata["files"]
        self._is_stamp_current = True
        self._map()

    @classmethod
    def build(cls, folder: Path, version: IndexVersion, dimension: int, batches: Iterable[SampleRows]) -> "MappedIndex":
        """Builds a new index from these rows in place of the old one, which open readers keep."""
        folder.mkdir(mode=0o700, exist_ok=True)
        salt = secrets.token_hex(4)
        names = {"rows": f"rows-{salt}.f32", "ids": f"ids-{salt}.i64"}
        for name in names.values():
            os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        counts = {"dimension": dimension, "rows": 0, "last": 0, "reach": 0.0, "stretch": 0.0}
        index = cls(folder, {"binding": asdict(version), **counts, "chunks": [], "files": names, "stamp": []})
        for batch in batches:
            index._write(batch)
        index._commit(version, range(index._chunk_count))
        index.remove_stale_files()
        return index

    @classmethod
    def open(cls, folder: Path, dimension: int) -> "MappedIndex | None":
        """Opens the index in a folder; returns None if it is missing, damaged or was changed by other programs."""
        try:
            metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
            if metadata["schema"] != INDEX_SCHEMA or metadata["dimension"] != dimension:
                return None
            if any(Path(name).name != name for name in metadata["files"].values()):
                return None
            index = cls(folder, metadata)
            stamp = index._file_stamp()
            if stamp != index._stamp and index._hash(range(index._chunk_count)) != index._chunks:
                return None
            # Copied files have another stamp but the same content.
            index._stamp, index._is_stamp_current = stamp, stamp == index._stamp
            return index
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def rows(self) -> SampleRows:
        """Mapped arrays: sample and person ids int64 [N], rows float32 [N,D]."""
        return SampleRows(self._id_N2[:, 0], self._id_N2[:, 1], self._row_ND)

    def is_current(self) -> bool:
        """Returns True if no other process has written to the files since they were opened or changed here."""
        try:
            return self._file_stamp() == self._stamp
        except OSError:
            return False

    def update(self, removed_M: np.ndarray, batches: Iterable[SampleRows], version: IndexVersion) -> bool:
        """Removes the rows of samples and appends others, in place; returns False if the result is not `version`.

        In place, since a million rows are 2 GB: the last rows replace removed ones, and their old positions are zeroed.
        After False the index must be rebuilt. Open readers keep the old number of rows and detect removals from the
        database.
        """
        digest = self.version.digest
        changed = set()
        if len(removed_M):
            digest, changed = self._remove_rows(np.isin(self._id_N2[:, 0], removed_M), digest)
        first = self.count // CHUNK_ROWS
        for batch in batches:
            self._write(batch)
            digest = add_digest(digest, batch.digest())
        if digest != version.digest:
            return False
        self._commit(version, sorted({*changed, *range(first, self._chunk_count)}))
        return True

    def check_integrity(self, digest: str) -> list[str]:
        """Returns the defects of the files after reading all of them; `digest` is that of the database."""
        defects = (
            []
            if self._hash(range(self._chunk_count)) == self._chunks
            else ["rows were changed: their hashes do not match"]
        )
        total = sum(
            SampleRows(*(column[start : start + CHUNK_ROWS] for column in self.rows)).digest()
            for start in range(0, self.count, CHUNK_ROWS)
        )
        return defects or ([] if add_digest("0", total) == digest else ["its samples differ from those of the gallery"])

    def remove_stale_files(self) -> None:
        """Removes files left by a killed writer, and records the stamp of copied files."""
        if not self._is_stamp_current:
            self._commit(self.version, ())
        for path in self.folder.iterdir():
            if path.name not in (METADATA_FILE, *self._names.values()):
                with suppress(OSError):
                    path.unlink()

    @property
    def _row_bytes(self) -> int:
        return self.dimension * _ROW.itemsize

    @property
    def _chunk_count(self) -> int:
        return math.ceil(self.count / CHUNK_ROWS)

    def _remove_rows(self, is_removed_N: np.ndarray, digest: str) -> tuple[str, set[int]]:
        """Removes rows; returns the digest without them, and the chunks that changed."""
        removed = SampleRows(*(column[is_removed_N] for column in self.rows))
        count = self.count - len(removed)
        hole_M = np.flatnonzero(is_removed_N[:count])
        moved_M = count + np.flatnonzero(~is_removed_N[count:])
        with self._open("rows") as rows, self._open("ids") as ids:
            for source, target in zip(moved_M.tolist(), hole_M.tolist(), strict=True):
                os.pwrite(rows, self._row_ND[source].tobytes(), target * self._row_bytes)
                os.pwrite(ids, self._id_N2[source].tobytes(), target * _ID_BYTES)
            for start in range(count, self.count, CHUNK_ROWS):
                zeroed = min(CHUNK_ROWS, self.count - start)
                os.pwrite(rows, bytes(zeroed * self._row_bytes), start * self._row_bytes)
                os.pwrite(ids, bytes(zeroed * _ID_BYTES), start * _ID_BYTES)
        self.count = count
        return add_digest(digest, -removed.digest()), set((hole_M // CHUNK_ROWS).tolist())

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        handle = os.open(self.folder / self._names[name], os.O_RDWR)
        try:
            yield handle
        finally:
            os.close(handle)

    def _map(self) -> None:
        # An empty file cannot be mapped.
        self._row_ND = np.empty((0, self.dimension), _ROW)
        self._id_N2 = np.empty((0, 2), _ID)
        if self.count:
            paths = {name: self.folder / file for name, file in self._names.items()}
            self._row_ND = np.memmap(paths["rows"], _ROW, "r", shape=(self.count, self.dimension))
            self._id_N2 = np.memmap(paths["ids"], _ID, "r", shape=(self.count, 2))

    def _write(self, batch: SampleRows) -> None:
        id_M2 = np.stack([batch.sample_N, batch.person_N], axis=1).astype(_ID)
        row_MD = np.ascontiguousarray(batch.row_ND, dtype=_ROW)
        with self._open("rows") as rows, self._open("ids") as ids:
            _write_all(rows, row_MD, self.count * self._row_bytes)
            _write_all(ids, id_M2, self.count * _ID_BYTES)
        norm_M = np.sqrt(np.einsum("md,md->m", row_MD, row_MD, dtype=np.float64))
        self.max_norm = max(self.max_norm, float(norm_M.max(initial=0)))
        self.max_norm_error = max(self.max_norm_error, float(np.abs(norm_M - 1).max(initial=0)))
        self.last = max(self.last, int(batch.sample_N.max(initial=0)))
        self.count += len(batch)

    def _commit(self, version: IndexVersion, changed_chunks: Iterable[int]) -> None:
        """Syncs the rows to disk, then writes the metadata that makes them valid."""
        for name in self._names:
            with self._open(name) as handle:
                os.fsync(handle)
        self._map()
        changed = [chunk for chunk in changed_chunks if chunk < self._chunk_count]
        self._chunks = (self._chunks + [""] * self._chunk_count)[: self._chunk_count]
        for chunk, digest in zip(changed, self._hash(changed), strict=True):
            self._chunks[chunk] = digest
        self.version, self._stamp, self._is_stamp_current = version, self._file_stamp(), True
        metadata = {
            **{"schema": INDEX_SCHEMA, "binding": asdict(version), "dimension": self.dimension, "rows": self.count},
            **{"last": self.last, "reach": self.max_norm, "stretch": self.max_norm_error, "files": self._names},
            **{"chunks": self._chunks, "stamp": self._stamp},
        }
        write_text(self.folder / METADATA_FILE, json.dumps(metadata))

    def _hash(self, chunks: Iterable[int]) -> list[str]:
        def digest_of(chunk: int) -> str:
            part = slice(chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS)
            digest = hashlib.sha256(np.ascontiguousarray(self._id_N2[part]))
            digest.update(np.ascontiguousarray(self._row_ND[part]))
            return digest.hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(digest_of, chunks))

    def _file_stamp(self) -> list[list[int]]:
        statuses = [(self.folder / name).stat() for name in self._names.values()]
        return [[status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns] for status in statuses]


def _write_all(handle: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values).cast("B") if values.size else memoryview(b"")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


# Most samples newer than the index; they are searched separately.
MAX_UNINDEXED = 16384
# People whose templates are computed at once.
TEMPLATE_BATCH = 2048


class IndexSnapshot:
    """One searchable revision: the rows of an index and the samples enrolled after it."""

    def __init__(self, index: MappedIndex, unindexed: SampleRows, *, cosine: bool, engine: Engine) -> None:
        self._index, self._unindexed = index, unindexed
        self._cosine, self._engine = cosine, engine
        self.count = index.count + len(unindexed)

    def nearest(self, query_PD: np.ndarray, t: int) -> NearestSamples:
        """Returns the t most similar samples of each probe, by exact scores."""
        rows = self._index.rows
        norms = {"max_norm": self._index.max_norm, "max_norm_error": self._index.max_norm_error}
        score_PT, row_PT = top_k_prevalidated(
            query_PD, rows.row_ND, t, cosine=self._cosine, engine=self._engine, **norms
        )
        result = _nearest_samples(score_PT, row_PT, rows)
        if len(self._unindexed):
            score_SPT, row_SPT = top_k(query_PD, self._unindexed.row_ND, t, cosine=self._cosine, engine=self._engine)
            result = merge_nearest([result, _nearest_samples(score_SPT[0], row_SPT[0], self._unindexed)], t)
        return result

    def exhaustive_search(self, query_D: np.ndarray, k: int) -> NearestSamples:
        """Returns the best samples of the k best people, by one pass over all rows."""
        if self._cosine:
            error = 2 * cosine_error_bound(len(query_D)) + self._index.max_norm_error
        else:
            norms = float(np.linalg.norm(query_D)) * max(self._index.max_norm, 1.0)
            error = inner_product_error_bound(len(query_D)) * norms
        parts = [part for part in (self._index.rows, self._unindexed) if len(part)]
        return merge_nearest(
            [
                exhaustive_search(query_D, part.row_ND, *part[:2], k, cosine=self._cosine, error=1.01 * error)
                for part in parts
            ]
        )


class GalleryIndex:
    """Indexes of samples and of templates in the folder of a gallery; changing them requires the writer lock."""

    def __init__(self, folder: Path, store: SampleStore, engine: Engine | None = None) -> None:
        self._folders = {False: folder / "index", True: folder / "templates"}
        self._store = store
        self._engine = engine
        self._opened: dict[bool, MappedIndex | None] = {}

    def snapshot(self, state: GalleryState, *, templates: bool) -> IndexSnapshot | None:
        """Returns the searchable snapshot of this state, or None if `sync` is needed first.

        Call it within a read transaction at this state.
        """
        self._engine = self._engine or open_engine()
        if (index := self._usable_index(state, templates)) is None:
            self._opened[templates] = MappedIndex.open(self._folders[templates], self._store.model_spec.dimension)
            if (index := self._usable_index(state, templates)) is None:
                return None
        unindexed = [] if templates else list(self._store.rows(index.last))
        return IndexSnapshot(
            index, self._concatenate(unindexed), cosine=self._store.model_spec.is_unit, engine=self._engine
        )

    def sync(self, removed: Sequence[int] = (), *, templates: bool = False) -> None:
        """Updates an index to the revision of the database, given the ids `removed` since, or rebuilds it."""
        version, folder = IndexVersion.of(self._store.state()), self._folders[templates]
        dimension = self._store.model_spec.dimension
        index = self._opened.get(templates)
        if index is None or not index.is_current():
            index = MappedIndex.open(folder, dimension)
        if index is None or index.version != version:
            if templates:
                self.sync()
                index = MappedIndex.build(folder, version, dimension, self._templates(self._opened[False].rows))
            elif not (index and self._can_update(index, version, removed) and self._update(index, version, removed)):
                index = MappedIndex.build(folder, version, dimension, self._all_samples(version))
        index.remove_stale_files()
        self._opened[templates] = index

    def rebuild(self) -> None:
        """Rebuilds the index of samples from the database; removes that of templates, which is rebuilt on demand."""
        self._opened = {}
        for folder in self._folders.values():
            remove_index(folder)
        self.sync()

    def drop_templates(self) -> None:
        """Removes the index of templates, which contain removed samples."""
        self._opened.pop(True, None)
        remove_index(self._folders[True])

    def check_integrity(self, state: GalleryState) -> list[str]:
        """Returns the defects of the index of samples at this state after reading all of it."""
        index = MappedIndex.open(self._folders[False], self._store.model_spec.dimension)
        if index is None:
            return ["is missing or damaged"]
        if index.version != IndexVersion.of(state):
            return ["is of another revision"]
        return index.check_integrity(state.digest)

    def _usable_index(self, state: GalleryState, templates: bool) -> MappedIndex | None:
        index, version = self._opened.get(templates), IndexVersion.of(state)
        if index is None or not index.is_current():
            return None
        if index.version == version:
            return index
        is_close = not templates and 0 <= state.samples - index.count <= MAX_UNINDEXED
        return index if is_close and self._can_update(index, version, ()) else None

    @staticmethod
    def _can_update(index: MappedIndex, version: IndexVersion, removed: Sequence[int]) -> bool:
        is_older = index.version.gallery == version.gallery and index.version.revision < version.revision
        # The samples of earlier removals are unknown.
        return is_older and index.version.removals + bool(removed) == version.removals

    def _update(self, index: MappedIndex, version: IndexVersion, removed: Sequence[int]) -> bool:
        return index.update(np.array(removed, dtype=np.int64), self._store.rows(index.last), version)

    def _all_samples(self, version: IndexVersion) -> Iterator[SampleRows]:
        """Yields all samples. Raises UserError at the end if they differ from those enrolled."""
        digest = add_digest("0", 0)
        for rows in self._store.rows():
            digest = add_digest(digest, rows.digest())
            yield rows
        if digest != version.digest:
            raise UserError(
                f"{self._folders[False].parent}: the embeddings in the database differ from those enrolled; "
                "see facelt gallery verify, and restore a snapshot"
            )

    def _concatenate(self, parts: Sequence[SampleRows]) -> SampleRows:
        empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, self._store.model_spec.dimension), "<f4")
        return SampleRows(*map(np.concatenate, zip(empty, *parts, strict=True)))

    def _templates(self, rows: SampleRows) -> Iterator[SampleRows]:
        """Yields the mean embedding of each person with the id of the person, normalised for unit kinds."""
        order_N = np.argsort(rows.person_N, kind="stable")
        people, first_C = np.unique(rows.person_N[order_N], return_index=True)
        end_C = np.append(first_C[1:], len(order_N))
        for start in range(0, len(people), TEMPLATE_BATCH):
            batch = slice(start, min(start + TEMPLATE_BATCH, len(people)))
            mean_CD = np.stack(
                [
                    rows.row_ND[order_N[first:end]].mean(axis=0, dtype=np.float64)
                    for first, end in zip(first_C[batch], end_C[batch], strict=True)
                ]
            )
            norm_C = np.linalg.norm(mean_CD, axis=1)
            # Opposite samples have no mean direction: such a person has no template.
            is_valid_C = norm_C >= MIN_NORM
            if self._store.model_spec.is_unit:
                mean_CD[is_valid_C] /= norm_C[is_valid_C, None]
            id_C = people[batch][is_valid_C].astype(np.int64)
            yield SampleRows(id_C, id_C, mean_CD[is_valid_C].astype(np.float32))


def remove_index(folder: Path) -> None:
    """Deletes the files of an index, which can be rebuilt from the database."""
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink(missing_ok=True)


def _nearest_samples(score_PT: np.ndarray, row_PT: np.ndarray, rows: SampleRows) -> NearestSamples:
    # Unfilled entries of a search have row -1.
    if not len(rows):
        return NearestSamples(score_PT, row_PT, row_PT)
    sample_PT, person_PT = (np.where(row_PT >= 0, column[row_PT], -1) for column in rows[:2])
    return NearestSamples(score_PT, sample_PT, person_PT)
