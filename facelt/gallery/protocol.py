"""What keeps a gallery must do, on one machine or many. P probes, K people, D feature."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from facelt.gallery.contract import Contract
from facelt.gallery.samples import Samples


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
