"""Gallery backend interface; ranking of people by their most similar samples.

P probes, U some of them, K people, T samples, G rows, D feature.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from facelt.search.exact import similarities


class Candidate(NamedTuple):
    """Candidate of a search: person, score, and the key of the best sample (None for a template)."""

    person: str
    score: float
    key: str | None


@dataclass(frozen=True)
class SearchResult:
    """Up to K candidates for each probe, best first, each person once.

    `exact` is true if no person with a higher score can be missing; `compared` is the number of rows compared per
    probe.
    """

    candidates: list[list[Candidate]]
    exact: bool
    compared: int


class GalleryCounts(NamedTuple):
    """Numbers of enrolled people and samples."""

    people: int
    samples: int


@dataclass(frozen=True)
class RemovalResult:
    """Number of removed samples; names and keys that were not enrolled; `unfinished` steps of the erasure, if any."""

    samples: int
    missing_people: Sequence[str] = ()
    missing_keys: Sequence[str] = ()
    unfinished: Sequence[str] = ()


class Backend(Protocol):
    """Storage and search of a gallery. All methods raise UserError on user errors."""

    @property
    def model_spec(self) -> ModelSpec:
        """Model and kind of embedding of the gallery."""
        ...

    def upsert(self, samples: Samples) -> None:
        """Enrols all samples or none; a sample with an existing key replaces the old one.

        Raises UserError on embeddings that are not finite, zero or of another dimension.
        """
        ...

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> RemovalResult:
        """Permanently deletes samples; a person with no samples left is removed."""
        ...

    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> SearchResult:
        """Returns the k most similar people, by their best sample or by their template (the mean of their samples).

        With `exact`, an approximate index is refused. People with scores below `floor` may be missing, except the best
        one, which saves time.
        """
        ...

    def count(self) -> GalleryCounts: ...

    def people(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the number of samples of each person, sorted by name."""
        ...

    def snapshot(self, path: Path) -> None:
        """Writes a copy of the gallery to a new folder."""
        ...

    def setting(self, name: str) -> Any:
        """Returns the value stored by `set_setting`, None if there is none."""
        ...

    def set_setting(self, name: str, value: Any) -> None:
        """Stores a JSON value."""
        ...

    def close(self) -> None: ...


# Samples fetched per wanted person in the first search; people with more samples may need another one.
_SAMPLES_PER_PERSON = 4
# Most samples fetched per probe before an exhaustive search is used instead.
MAX_NEAREST_SAMPLES = 2048
# Rows scored at once in an exhaustive search.
SCORE_BLOCK_ROWS = 65536


class NearestSamples(NamedTuple):
    """Most similar samples of P probes: score float64, sample and person ids int64, [P,T] each, scores descending.

    If there are fewer than T samples, the remaining entries are -inf and -1.
    """

    score_PT: np.ndarray
    sample_PT: np.ndarray
    person_PT: np.ndarray

    def people(self, probe: int, k: int) -> "NearestSamples":
        """Returns the best sample of each of the first k people of one probe, [1,K]."""
        person_T = self.person_PT[probe]
        _, first = np.unique(person_T, return_index=True)
        column_K = np.sort(first[person_T[first] >= 0])[:k]
        return NearestSamples(*(array[probe, column_K][None] for array in self))


def merge_nearest(parts: Sequence[NearestSamples], limit: int | None = None) -> NearestSamples:
    """Returns the `limit` best samples of several parts, by default all; ties are in order of sample id."""
    score_PN, sample_PN, person_PN = (np.hstack(columns) for columns in zip(*parts, strict=True))
    order_PT = np.lexsort((sample_PN, -score_PN), axis=1)[:, :limit]
    return NearestSamples(*(np.take_along_axis(array, order_PT, axis=1) for array in (score_PN, sample_PN, person_PN)))


def rank_people(
    probe_PD: np.ndarray,
    k: int,
    nearest: Callable[[np.ndarray, int], NearestSamples],
    *,
    samples: int,
    floor: float = -np.inf,
    exhaustive: Callable[[np.ndarray, int], NearestSamples] | None = None,
) -> tuple[list[NearestSamples], bool]:
    """Returns the k people with the most similar samples for each probe, [1,K] each, and whether that is exact.

    `nearest(probe_UD, t)` returns the t best of `samples` samples for some probes. If more than MAX_NEAREST_SAMPLES
    samples are needed for a probe, `exhaustive(probe_D, k)` searches all; without it people may be missing. Once the
    best person is known, people below `floor` are not searched for.
    """
    probes = len(probe_PD)
    if not min(k, samples):
        return [NearestSamples(np.empty((1, 0)), *np.empty((2, 1, 0), dtype=np.int64))] * probes, True
    best: list[NearestSamples] = [None] * probes
    open_U, fetched = (
        np.arange(probes),
        min(max(k, min(1 + _SAMPLES_PER_PERSON * (k - 1), MAX_NEAREST_SAMPLES)), samples),
    )
    while len(open_U):
        result = nearest(probe_PD[open_U], fetched)
        for index, probe in enumerate(open_U.tolist()):
            best[probe] = result.people(index, k)
        if fetched == samples:
            return best, True
        # Samples that were not fetched score at most as high as the last one fetched.
        is_open_U = result.score_PT[:, -1] >= floor
        is_open_U &= [best[probe].score_PT.shape[1] < k for probe in open_U.tolist()]
        open_U = open_U[is_open_U]
        if fetched >= MAX_NEAREST_SAMPLES:
            break
        fetched = min(4 * fetched, MAX_NEAREST_SAMPLES, samples)
    for probe in open_U if exhaustive else ():
        best[probe] = exhaustive(probe_PD[probe], k).people(0, k)
    return best, exhaustive is not None or not len(open_U)


def exhaustive_search(
    query_D: np.ndarray,
    row_GD: np.ndarray,
    sample_G: np.ndarray,
    person_G: np.ndarray,
    k: int,
    *,
    cosine: bool,
    error: float,
) -> NearestSamples:
    """Returns the best samples of the k best people by one pass over all rows, [1,T].

    Candidates are selected by float32 scores with the error bound `error` and ranked by exact scores.
    """
    score_G = np.empty(len(row_GD), dtype=np.float32)
    float_D = query_D / np.float32(np.linalg.norm(query_D)) if cosine else query_D
    for start in range(0, len(row_GD), SCORE_BLOCK_ROWS):
        np.matmul(row_GD[start : start + SCORE_BLOCK_ROWS], float_D, out=score_G[start : start + SCORE_BLOCK_ROWS])
    people, person_of_G = np.unique(person_G, return_inverse=True)
    best_C = np.full(len(people), -np.inf, dtype=np.float32)
    np.maximum.at(best_C, person_of_G, score_G)
    kth_score = np.partition(best_C, -min(k, len(people)))[-min(k, len(people))]
    row_T = np.flatnonzero((score_G >= best_C[person_of_G] - 2 * error) & (score_G >= kth_score - 2 * error))
    score_T = similarities(query_D[None], np.zeros(len(row_T), dtype=np.int64), row_GD, row_T, cosine=cosine)
    order_T = np.lexsort((sample_G[row_T], -score_T))
    return NearestSamples(score_T[order_T][None], sample_G[row_T][order_T][None], person_G[row_T][order_T][None])
