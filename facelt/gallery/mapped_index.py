"""Memory-mapped rows of a gallery's index, bound to a revision of the database by hashes.

An index is a folder with the rows (`rows-*.f32`), their ids (`ids-*.i64`: sample and person) and `bound.json`, which
names both files, their revision and their number of rows; rows beyond that number are ignored. Files changed by other
programs are detected by their stamp (inode, size and times) and then by the hashes of their chunks, `bound.json` by its
own hash.

N rows, M some of them, D feature.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.gallery.sample_store import GalleryState
from facelt.gallery.samples import SampleRows, add_digest
from recordio_tools.atomic_io import write_text
from recordio_tools.bounded_io import read_json

INDEX_SCHEMA = "facelt.gallery-index/2"
METADATA_FILE = "bound.json"
REBUILD_ADVICE = "run facelt gallery rebuild"
ROWS_CHANGED = "rows or ids were changed: their hashes do not match"
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
        """Builds a new index from these rows in place of the old one, which open readers keep; leaves it on failure."""
        folder.mkdir(mode=0o700, exist_ok=True)
        salt = secrets.token_hex(4)
        names = {"rows": f"rows-{salt}.f32", "ids": f"ids-{salt}.i64"}
        counts = {"dimension": dimension, "rows": 0, "last": 0, "reach": 0.0, "stretch": 0.0}
        try:
            for name in names.values():
                os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            index = cls(folder, {"binding": asdict(version), **counts, "chunks": [], "files": names, "stamp": []})
            for batch in batches:
                index._write(batch)
            index._commit(version, range(index._chunk_count))
        except BaseException:
            for name in names.values():
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
            raise
        index.remove_stale_files()
        return index

    @classmethod
    def open(cls, folder: Path, dimension: int) -> "MappedIndex":
        """Opens the index in a folder.

        Raises UserError naming the file that is missing, damaged or was changed by other programs.
        """
        metadata = _read_metadata(folder / METADATA_FILE, dimension)
        try:
            index = cls(folder, metadata)
            stamp = index._file_stamp()
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {REBUILD_ADVICE}") from error
        except ValueError as error:
            raise UserError(f"{folder}: rows or ids are too short ({error}); {REBUILD_ADVICE}") from error
        if stamp != index._stamp and index._hash(range(index._chunk_count)) != index._chunks:
            raise UserError(f"{folder}: {ROWS_CHANGED}; {REBUILD_ADVICE}")
        # Copied files have another stamp but the same content.
        index._stamp, index._is_stamp_current = stamp, stamp == index._stamp
        return index

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

    def is_intact(self) -> bool:
        """Returns True if rows and ids have their recorded hashes, after reading all of them."""
        return self._hash(range(self._chunk_count)) == self._chunks

    def digest(self) -> str:
        """Returns the digest of all rows, which is that of the database if both hold the same samples."""
        total = sum(
            SampleRows(*(column[start : start + CHUNK_ROWS] for column in self.rows)).digest()
            for start in range(0, self.count, CHUNK_ROWS)
        )
        return add_digest("0", total)

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
        write_text(self.folder / METADATA_FILE, json.dumps({**metadata, "sha256": _metadata_digest(metadata)}))

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


def _read_metadata(path: Path, dimension: int) -> dict:
    """Reads the metadata of an index. Raises UserError if they are missing, damaged or of another version."""
    try:
        metadata = read_json(path)
        digest = metadata.pop("sha256", None)
        is_usable = metadata["schema"] == INDEX_SCHEMA and metadata["dimension"] == dimension
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REBUILD_ADVICE}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is damaged; {REBUILD_ADVICE}") from None
    if not is_usable:
        raise UserError(f"{path}: is of another version; {REBUILD_ADVICE}")
    if digest != _metadata_digest(metadata) or any(Path(name).name != name for name in metadata["files"].values()):
        raise UserError(f"{path}: was changed by another program; {REBUILD_ADVICE}")
    return metadata


def _metadata_digest(metadata: dict) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _write_all(handle: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values).cast("B") if values.size else memoryview(b"")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
