"""The search indexes of a gallery, kept in step with the truth: one of samples, one of people's mean templates.

N rows, M some of them, D feature, P probes, T neighbours.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.gallery.matrix import Binding, Matrix
from facelt.gallery.people import Nearest, best_of_everybody, joined
from facelt.gallery.rows import SampleRows, add_digest
from facelt.gallery.samples import LEAST_LENGTH
from facelt.gallery.truth import State, Truth
from facelt.search import Engine, open_engine, top_k, top_k_sound
from facelt.search.exact import cosine_bound, error_bound

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
        sound = {"reach": matrix.reach, "stretch": matrix.stretch}
        found = top_k_sound(query_PD, matrix.rows.row_ND, t, cosine=self._cosine, engine=self._engine, **sound)
        result = _named(*found, matrix.rows)
        if len(self._late):
            score_SPT, place_SPT = top_k(query_PD, self._late.row_ND, t, cosine=self._cosine, engine=self._engine)
            result = joined([result, _named(score_SPT[0], place_SPT[0], self._late)], t)
        return result

    def crowded(self, query_D: np.ndarray, k: int) -> Nearest:
        """The best samples of everybody who can be among the k best people."""
        dimension = len(query_D)
        if self._cosine:
            slack = 2 * cosine_bound(dimension) + self._matrix.stretch
        else:
            slack = error_bound(dimension) * float(np.linalg.norm(query_D)) * max(self._matrix.reach, 1.0)
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
