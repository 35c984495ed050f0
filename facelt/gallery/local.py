"""Gallery in a local folder: database, derived indexes and the writer lock.

    gallery.sqlite     the database, with -wal and -shm files while it is open
    index/             index of the samples, derived from the database
    templates/         index of the mean embedding of each person, derived on demand
    writer.lock        held by the writing process

P probes, K people, M samples, D feature.
"""

import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.access import require_access
from facelt.gallery.backend import Candidate, GalleryCounts, NearestSamples, RemovalResult, SearchResult, rank_people
from facelt.gallery.index import GalleryIndex
from facelt.gallery.locks import ThreadGuard, WriterLock, synchronized
from facelt.gallery.mapped_index import REBUILD_ADVICE
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.sample_store import DATABASE_FILE, SampleStore
from facelt.gallery.samples import Samples, validated_embeddings, validated_samples
from facelt.search.engine import Engine
from facelt.search.exact import BadRow, similarities

# Time that a reader waits for a writer that is changing the index.
WRITER_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.05
# Rebuilds of the index for one revision in one search: a concurrent writer may spoil one.
MAX_REBUILDS = 3


class LocalGallery:
    """See Backend. With `write`, holds the writer lock until closed and first completes any interrupted removal."""

    def __init__(self, path: str | Path, *, write: bool = False, engine: Engine | None = None) -> None:
        self.path = Path(path)
        self.guard = ThreadGuard()
        self._lock = WriterLock(self.path / "writer.lock")
        self._writes = write
        require_access(self.path, write=write)
        self._store = SampleStore.open(self.path / DATABASE_FILE, write=write)
        self._index = GalleryIndex(self.path, self._store, engine)
        if write:
            try:
                self._lock.acquire()
                self._index.sync()
                self._finish_removal()
            except BaseException:
                self.close()
                raise

    @classmethod
    def create(cls, path: str | Path, model_spec: ModelSpec) -> "LocalGallery":
        """Creates a gallery, open for writing. Raises UserError if the folder is not empty."""
        path = Path(path)
        is_new = not path.exists()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path}: is not empty; choose another folder or remove it")
            path.chmod(0o700)
        except OSError as error:
            raise UserError(f"{path}: cannot be created ({error.strerror})") from error
        try:
            SampleStore.create(path / DATABASE_FILE, model_spec).close()
            return cls(path, write=True)
        except BaseException:
            # The folder was empty: all of its content is that of the unfinished gallery.
            shutil.rmtree(path, ignore_errors=True)
            if not is_new:
                path.mkdir(mode=0o700, exist_ok=True)
            raise

    @property
    def model_spec(self) -> ModelSpec:
        return self._store.model_spec

    def close(self) -> None:
        if not self.guard.is_forked:
            with self.guard.lock(self.path):
                if self._lock.is_held:
                    # If it fails, the next removal reads the whole file instead.
                    with suppress(UserError):
                        self._store.scrub_changes()
                self._store.close()
                self._lock.release()

    @synchronized
    def upsert(self, samples: Samples) -> None:
        self._refuse_reader()
        samples = validated_samples(samples, self.model_spec)
        if not len(samples):
            return
        with self._store.write_transaction():
            replaced = self._store.upsert(samples)
        if replaced:
            self._index.drop_templates()
        self._index.sync(replaced)

    @synchronized
    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> RemovalResult:
        self._refuse_reader()
        people, keys = list(dict.fromkeys(people)), list(dict.fromkeys(keys))
        missing = self._store.missing(people, keys)
        with self._store.write_transaction():
            removed = self._store.remove(people, keys)
        if removed:
            self._index.drop_templates()
            self._index.sync(removed)
        return RemovalResult(len(removed), *missing, self._finish_removal())

    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> SearchResult:
        probe_PD = validated_embeddings(probe_PD, self.model_spec)
        started, contradictions, rebuilds = time.monotonic(), Counter(), Counter()
        # Not by @synchronized: the path to the engine stays short.
        with self.guard.lock(self.path):
            while True:
                candidates = None
                try:
                    # A concurrent removal leaves zero rows behind.
                    with self._store.read_transaction(), np.errstate(divide="ignore", invalid="ignore"):
                        state = self._store.state()
                        snapshot = self._index.snapshot(state, templates=templates)
                        if snapshot is not None:
                            ranked, _ = rank_people(
                                probe_PD,
                                min(k, state.people),
                                snapshot.nearest,
                                samples=snapshot.count,
                                floor=floor,
                                exhaustive=snapshot.exhaustive_search,
                            )
                            candidates = (
                                self._template_candidates(ranked)
                                if templates
                                else self._sample_candidates(ranked, probe_PD)
                            )
                except BadRow as error:
                    if error.side != "database":
                        raise
                # Removals change the index in place.
                if candidates is not None and self._store.state().removals == state.removals:
                    return SearchResult(candidates, True, snapshot.count)
                if candidates is None:
                    is_contradicted = snapshot is not None
                    contradictions[state.revision] += is_contradicted
                    if contradictions[state.revision] == 1:
                        self._store.refuse_orphans()
                    rebuilds[state.revision] += self._repair_index(templates, is_contradicted, started)
                    if rebuilds[state.revision] > MAX_REBUILDS:
                        raise UserError(
                            f"{self.path / DATABASE_FILE}: contradicts the index that was built from it; run facelt "
                            "gallery verify"
                        )

    @synchronized
    def count(self) -> GalleryCounts:
        state = self._store.state()
        return GalleryCounts(state.people, state.samples)

    @synchronized
    def people(self) -> Iterator[tuple[str, int]]:
        return iter(self._store.people())

    def samples(self) -> Iterator[Samples]:
        """Yields all samples, a few thousand at a time."""
        batches = self._store.samples()
        while (batch := self._next(batches)) is not None:
            yield batch

    @synchronized
    def snapshot(self, path: str | Path) -> None:
        """See Backend. Later removals are applied to this copy as well, as long as it stays in place."""
        self._refuse_reader()
        path = Path(path)
        if path.absolute().is_relative_to(self.path.absolute()):
            raise UserError(f"{path}: is inside the gallery; write the snapshot elsewhere")
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be created ({error.strerror}); choose another folder") from error
        try:
            self._store.copy_to(path / DATABASE_FILE)
        except UserError:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(UserError):  # a full disk
                self._store.forget_snapshot(path.absolute())
            raise

    @synchronized
    def forget_snapshot(self, path: str | Path) -> None:
        """Removes a snapshot that no longer exists from those to which removals are applied.

        Raises UserError if it is none of this gallery, or still there: removed people must be erased from it as well.
        """
        self._refuse_reader()
        folder, snapshots = Path(path).absolute(), self._store.snapshots()
        if folder not in snapshots:
            known = ", ".join(map(str, snapshots)) or "none"
            raise UserError(f"{folder}: is not a snapshot of {self.path}; its snapshots: {known}")
        if (folder / DATABASE_FILE).exists() and self._is_same_gallery(folder):
            raise UserError(f"{folder}: still holds a snapshot of {self.path}; remove that folder first")
        self._store.forget_snapshot(folder)

    def _is_same_gallery(self, folder: Path) -> bool:
        with closing(LocalGallery(folder)) as other:
            return other.info()["gallery"] == self.info()["gallery"]

    @synchronized
    def setting(self, name: str) -> Any:
        return self._store.setting(name)

    @synchronized
    def set_setting(self, name: str, value: Any) -> None:
        self._refuse_reader()
        with self._store.write_transaction():
            self._store.set_setting(name, value)

    @synchronized
    def rebuild(self) -> None:
        """Rebuilds the index from the database."""
        self._refuse_reader()
        self._index.rebuild()

    @synchronized
    def compact(self) -> tuple[int, int]:
        """Rewrites the database without its free space; returns its bytes before and after.

        Raises UserError if a reader prevents it, or if the disk has no space for a second copy and the log.
        """
        self._refuse_reader()
        database = self.path / DATABASE_FILE
        before = database.stat().st_size
        if not self._store.compact():
            raise UserError(f"{self.path}: a reader prevents the log from being truncated; repeat the command")
        return before, database.stat().st_size

    @synchronized
    def check_integrity(self) -> list[str]:
        """Returns all defects of the files after reading all of them."""
        database = self.path / DATABASE_FILE
        defects = self._store.check_integrity()
        try:
            state = self._store.state()
        except UserError:  # named above
            return defects
        if not defects and state.unscrubbed:
            defects.append(f"{database}: may hold bytes of removed samples; {REBUILD_ADVICE}")
        defects += self._index.check_integrity(state)
        for path in sorted(self.path.glob(f"{DATABASE_FILE}*")):
            if path.stat().st_mode & 0o077:
                defects.append(f"{path}: is readable by other users; chmod 600")
        return defects

    @synchronized
    def info(self) -> dict[str, Any]:
        """Returns the id, the revision and the snapshots of the gallery."""
        state = self._store.state()
        return {
            "gallery": state.gallery,
            "revision": state.revision,
            "snapshots": list(map(str, self._store.snapshots())),
        }

    @synchronized
    def _next(self, batches: Iterator[Samples]) -> Samples | None:
        return next(batches, None)

    def _sample_candidates(
        self, ranked: Sequence[NearestSamples], probe_PD: np.ndarray
    ) -> list[list[Candidate]] | None:
        """Returns the candidates of each probe, or None if they contradict the database: the index was changed."""
        sample_M = np.concatenate([nearest.sample_PT[0] for nearest in ranked]) if ranked else np.empty(0, np.int64)
        score_M = np.concatenate([nearest.score_PT[0] for nearest in ranked]) if ranked else np.empty(0)
        probe_M = np.repeat(np.arange(len(ranked)), [nearest.score_PT.shape[1] for nearest in ranked])
        distinct, index_M = np.unique(sample_M, return_inverse=True)
        records = self._store.samples_by_id(distinct.tolist())
        if len(records) != len(distinct):
            return None
        rows = [records[sample_id][2] for sample_id in distinct.tolist()]
        row_ND = np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), self.model_spec.dimension)
        # Equal rows have equal scores: another score means another row.
        if (similarities(probe_PD, probe_M, row_ND, index_M, cosine=self.model_spec.is_unit) != score_M).any():
            return None
        return [
            [
                Candidate(records[sample][0], score, records[sample][1])
                for score, sample in zip(nearest.score_PT[0].tolist(), nearest.sample_PT[0].tolist(), strict=True)
            ]
            for nearest in ranked
        ]

    def _template_candidates(self, ranked: Sequence[NearestSamples]) -> list[list[Candidate]] | None:
        """See `_sample_candidates`; these have no sample key."""
        ids = sorted({person for nearest in ranked for person in nearest.person_PT[0].tolist()})
        names = self._store.names_by_id(ids)
        if len(names) != len(ids):
            return None
        return [
            [
                Candidate(names[person], score, None)
                for score, person in zip(nearest.score_PT[0].tolist(), nearest.person_PT[0].tolist(), strict=True)
            ]
            for nearest in ranked
        ]

    def _repair_index(self, templates: bool, is_damaged: bool, started: float) -> bool:
        """Syncs or rebuilds the index, or waits for the writer to do so; returns True if it was rebuilt."""
        if time.monotonic() - started > WRITER_TIMEOUT_SECONDS:
            raise UserError(f"{self.path}: the index is out of date and its writer has not updated it; try again later")
        if not self._lock.is_held and not self._lock.try_acquire():
            time.sleep(_POLL_SECONDS)
            return False
        try:
            if is_damaged:
                self._index.rebuild()
            self._index.sync(templates=templates)
        finally:
            if not self._writes:
                self._lock.release()
        return is_damaged

    def _finish_removal(self) -> list[str]:
        """Applies a committed removal to the snapshots and erases it; returns descriptions of unfinished steps."""
        if not self._store.state().unscrubbed:
            return []
        unfinished = []
        people, keys = self._store.removing()
        for path in self._store.snapshots():
            try:
                with closing(LocalGallery(path, write=True)) as copy:
                    if copy.info()["gallery"] != self.info()["gallery"]:
                        raise UserError(f"{path}: is a different gallery now")
                    unfinished += copy.remove(people, keys).unfinished
            except UserError as error:
                command = shlex.join(["facelt", "gallery", "forget-snapshot", str(self.path), str(path)])
                unfinished.append(
                    f"removed people may still be in a snapshot: {error}; if it no longer exists: {command}"
                )
        remaining = "bytes of removed samples may remain until the gallery is next opened for writing"
        try:
            if not self._store.scrub():
                unfinished.append(f"{self.path}: a reader prevents the log from being truncated; {remaining}")
        except UserError as error:
            # Removed people are not found in any case.
            unfinished.append(f"{error}; {remaining}")
        return unfinished

    def _refuse_reader(self) -> None:
        if not self._writes:
            raise UserError(f"{self.path}: is opened read-only")
