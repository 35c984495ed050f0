"""Search indexes of a gallery, derived from the database: one of samples, one of templates.

A template is the mean of the samples of a person. N rows, P probes, T neighbours, C people, D feature.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import NearestSamples, exhaustive_search, merge_nearest
from facelt.gallery.mapped_index import METADATA_FILE, REBUILD_ADVICE, ROWS_CHANGED, IndexVersion, MappedIndex
from facelt.gallery.sample_store import GalleryState, SampleStore
from facelt.gallery.samples import MIN_NORM, SampleRows, add_digest
from facelt.search.engine import Engine
from facelt.search.exact import cosine_error_bound, inner_product_error_bound
from facelt.search.factory import open_engine
from facelt.search.top_k import top_k, top_k_prevalidated

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
            self._opened[templates] = self._open(templates)
            if (index := self._usable_index(state, templates)) is None:
                return None
        unindexed = [] if templates else list(self._store.rows(index.last))
        return IndexSnapshot(
            index, self._concatenate(unindexed), cosine=self._store.model_spec.is_unit, engine=self._engine
        )

    def sync(self, removed: Sequence[int] = (), *, templates: bool = False) -> None:
        """Updates an index to the revision of the database, given the ids `removed` since, or rebuilds it.

        Raises UserError if it cannot be written; the next call repeats it.
        """
        try:
            self._sync(removed, templates)
        except BaseException as error:
            # The index in memory may be ahead of its files.
            self._opened.pop(templates, None)
            if isinstance(error, OSError):
                raise UserError(
                    f"{error.filename or self._folders[templates]}: cannot be written ({error.strerror}); the database "
                    "is complete: free some space, and the next command updates the index"
                ) from error
            raise

    def _sync(self, removed: Sequence[int], templates: bool) -> None:
        version, folder = IndexVersion.of(self._store.state()), self._folders[templates]
        dimension = self._store.model_spec.dimension
        index = self._opened.get(templates)
        if index is None or not index.is_current():
            index = self._open(templates)
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
        """Returns the defects of the indexes at this state after reading all of them; templates may be missing."""
        defects = []
        for is_template, folder in self._folders.items():
            if is_template and not (folder / METADATA_FILE).exists():
                continue
            try:
                index = MappedIndex.open(folder, self._store.model_spec.dimension)
            except UserError as error:
                defects.append(str(error))
                continue
            if not index.is_intact():
                defects.append(f"{folder}: {ROWS_CHANGED}; {REBUILD_ADVICE}")
            elif not is_template and index.version != IndexVersion.of(state):
                defects.append(f"{folder}: is of another revision; {REBUILD_ADVICE}")
            elif not is_template and index.digest() != state.digest:
                defects.append(f"{folder}: its samples differ from those of the gallery; {REBUILD_ADVICE}")
        return defects

    def _open(self, templates: bool) -> MappedIndex | None:
        """Opens an index; returns None if it must be rebuilt."""
        with suppress(UserError):
            return MappedIndex.open(self._folders[templates], self._store.model_spec.dimension)
        return None

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
