"""What keeps a gallery must do, on one machine or many. P probes, K people, D feature.

From the most similar samples to the most similar people. P probes, U some of them, K people, T samples, G rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from facelt.gallery.model_spec import Contract
from facelt.gallery.samples import Samples
from facelt.search.exact import similarities


class Candidate(NamedTuple):
    """A person who resembles a probe: how much, and by which sample; None for the mean of all samples."""

    person: str
    score: float
    key: str | None


@dataclass(frozen=True)
class Found:
    """For each probe up to K candidates, best first, each person once.

    `exact` tells that nobody with a higher score was passed over; `compared` is the number of rows that a probe was
    compared with.
    """

    candidates: list[list[Candidate]]
    exact: bool
    compared: int


class Count(NamedTuple):
    """How many are enrolled."""

    people: int
    samples: int


@dataclass(frozen=True)
class Removed:
    """How many samples are gone; what was asked for and not there; whether no byte is left, and what to do if not."""

    samples: int
    missing_people: Sequence[str] = ()
    missing_keys: Sequence[str] = ()
    unfinished: Sequence[str] = ()


class Backend(Protocol):
    """Keeps samples and finds the people nearest to probes. All raise UserError on what a user can cause."""

    @property
    def contract(self) -> Contract:
        """The one model and kind of embedding it holds."""
        ...

    def upsert(self, samples: Samples) -> None:
        """Enrols samples, all or none; one whose key exists takes the place of the old one.

        Embeddings that are not finite, of length zero or of another dimension are refused.
        """
        ...

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> Removed:
        """Takes samples away for good; a person without samples is nobody."""
        ...

    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> Found:
        """The k most similar people: by their best sample, or by the mean of their samples.

        With `exact` an index that could pass somebody over is refused. People who score below `floor` may be missing,
        the best one never: looking for them takes time.
        """
        ...

    def count(self) -> Count: ...

    def people(self) -> Iterator[tuple[str, int]]:
        """Everybody's name and number of samples, by name."""
        ...

    def snapshot(self, path: Path) -> None:
        """Writes all that is enrolled as a gallery folder of its own."""
        ...

    def setting(self, name: str) -> Any:
        """What `set_setting` kept under this name; None without."""
        ...

    def set_setting(self, name: str, value: Any) -> None:
        """Keeps a JSON value."""
        ...

    def close(self) -> None: ...


# Samples of each person that one search allows for; whoever has more may cost another one.
EACH = 4
# Samples asked for at most before all of a probe's scores are gone through instead.
MOST = 2048
# Rows scored at once in doing so.
BLOCK_ROWS = 65536


class Nearest(NamedTuple):
    """The most similar samples of P probes: score float64, sample and person int64, [P,T] each, scores descending.

    Where there are fewer than T samples the rest is -inf and -1.
    """

    score_PT: np.ndarray
    sample_PT: np.ndarray
    person_PT: np.ndarray

    def people(self, probe: int, k: int) -> "Nearest":
        """The best sample of each of the first k people of one probe, [1,K]."""
        person_T = self.person_PT[probe]
        _, first = np.unique(person_T, return_index=True)
        place_K = np.sort(first[person_T[first] >= 0])[:k]
        return Nearest(*(one[probe, place_K][None] for one in self))


def joined(parts: Sequence[Nearest], most: int | None = None) -> Nearest:
    """The `most` best of several, by default all; ties in the order of samples."""
    score_PN, sample_PN, person_PN = (np.hstack(columns) for columns in zip(*parts, strict=True))
    order_PT = np.lexsort((sample_PN, -score_PN), axis=1)[:, :most]
    return Nearest(*(np.take_along_axis(one, order_PT, axis=1) for one in (score_PN, sample_PN, person_PN)))


def best_people(
    nearest: Callable[[np.ndarray, int], Nearest],
    probes: int,
    k: int,
    *,
    samples: int,
    floor: float = -np.inf,
    crowded: Callable[[int], Nearest] | None = None,
) -> tuple[list[Nearest], bool]:
    """The k people with the most similar samples for each probe, [1,K] each, and whether they are sure to be these.

    `nearest(probe_U, t)` gives the t best of `samples` samples of some probes. Of a probe near somebody with more
    samples than MOST, `crowded(probe)` goes through all; without it the result may lack people. Those below `floor`
    are not looked for once the best person is known.
    """
    if not min(k, samples):
        return [Nearest(np.empty((1, 0)), *np.empty((2, 1, 0), dtype=np.int64))] * probes, True
    found: list[Nearest] = [None] * probes
    open_U, take = np.arange(probes), min(max(k, min(1 + EACH * (k - 1), MOST)), samples)
    while len(open_U):
        given = nearest(open_U, take)
        for place, probe in enumerate(open_U.tolist()):
            found[probe] = given.people(place, k)
        if take == samples:
            return found, True
        # What is not among the given samples scores at most as much as the last of these.
        is_open_U = given.score_PT[:, -1] >= floor
        is_open_U &= [found[probe].score_PT.shape[1] < k for probe in open_U.tolist()]
        open_U = open_U[is_open_U]
        if take >= MOST:
            break
        take = min(4 * take, MOST, samples)
    for probe in open_U if crowded else ():
        found[probe] = crowded(int(probe)).people(0, k)
    return found, crowded is not None or not len(open_U)


def best_of_everybody(
    query_D: np.ndarray,
    row_GD: np.ndarray,
    sample_G: np.ndarray,
    person_G: np.ndarray,
    k: int,
    *,
    cosine: bool,
    slack: float,
) -> Nearest:
    """The samples that can be the best of one of the k best people, by one pass over all rows, [1,T].

    Float32 scores that `slack` bounds the error of choose them, exact ones rank them.
    """
    score_G = np.empty(len(row_GD), dtype=np.float32)
    rough_D = query_D / np.float32(np.linalg.norm(query_D)) if cosine else query_D
    for start in range(0, len(row_GD), BLOCK_ROWS):
        np.matmul(row_GD[start : start + BLOCK_ROWS], rough_D, out=score_G[start : start + BLOCK_ROWS])
    people, person_of_G = np.unique(person_G, return_inverse=True)
    best_C = np.full(len(people), -np.inf, dtype=np.float32)
    np.maximum.at(best_C, person_of_G, score_G)
    least = np.partition(best_C, -min(k, len(people)))[-min(k, len(people))]
    row_T = np.flatnonzero((score_G >= best_C[person_of_G] - 2 * slack) & (score_G >= least - 2 * slack))
    score_T = similarities(query_D[None], np.zeros(len(row_T), dtype=np.int64), row_GD, row_T, cosine=cosine)
    order_T = np.lexsort((sample_G[row_T], -score_T))
    return Nearest(score_T[order_T][None], sample_G[row_T][order_T][None], person_G[row_T][order_T][None])
