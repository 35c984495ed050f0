"""The threshold that strangers seldom reach in a gallery of this size, and until which size it holds.

FPIR, false positive identification rate: the share of searches for people who are not enrolled whose best candidate
reaches the threshold (ISO/IEC 19795-1). It rises with the gallery: who is compared with n times as many rows, each of
which matches by chance, is a false positive with 1 - (1 - FPIR)^n.

N non-mated searches, I identities.

A gallery of people: enrol them, and tell who somebody is, or that nobody knows. P probes, N samples, D feature.

>>> import numpy as np
>>> from facelt.gallery import Contract, Gallery, Samples
>>> contract = Contract("my model", weights_sha256="0" * 64, kind="direct", dimension=3)
>>> with Gallery.create("people", contract) as gallery:
...     gallery.enroll(Samples(["ada-1.jpg", "bo-1.jpg"], ["Ada", "Bo"], np.array([[1, 0, 0], [0, 1, 0]])))
...     found = gallery.identify(np.array([[0.9, 0.1, 0], [0, 0, 1]]), threshold=0.5)
2
>>> [[(one.person, round(one.score, 3)) for one in answer.candidates] for answer in found.answers]
[[('Ada', 0.994)], []]
>>> found.answers[1].is_known
False
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Backend, Candidate, Count, Removed
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import Contract
from facelt.gallery.samples import Samples, checked, checked_rows, refuse_repeated
from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, max_errors
from facelt.identification.open_set import lowest_threshold
from recordio_tools.progress import ProgressFn, no_progress

LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """A threshold for the FPIR `wanted`, what was seen at it, and the limits of both at LEVEL.

    `compared` is the number of rows a search was compared with; `templates` whether these were people's means. `by` is
    what is held against the threshold: `similarity` of the best candidate or `reachability` of the probe, which no
    gallery's size changes. `supported`: whether the searches suffice for 30 errors at the wanted rate. Limits are None
    where the searches are of fewer than two people.
    """

    wanted: float
    threshold: float
    threshold_low: float | None
    threshold_high: float | None
    fpir: float
    fpir_low: float | None
    fpir_high: float | None
    searches: int
    identities: int
    compared: int
    templates: bool
    by: str
    supported: bool

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> "Calibration":
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def advised_searches(self) -> int:
        """How many would be `supported` at the wanted rate."""
        return math.ceil(MIN_SUPPORTING_ERRORS / self.wanted)

    def expected_fpir(self, compared: int) -> float:
        """The FPIR at this threshold when a search is compared with so many rows."""
        if self.by == "reachability" or self.fpir == 1 or not self.compared:
            return self.fpir
        return -math.expm1(math.log1p(-self.fpir) * compared / self.compared)

    def warning(self, compared: int) -> str | None:
        """What to say when a gallery has grown, or shrunk, to so many rows; None while the threshold holds."""
        if not self.compared and compared and self.by == "similarity":
            return "the threshold was set when nobody was enrolled; calibrate again"
        expected = self.expected_fpir(compared)
        if expected <= (self.wanted if self.fpir_high is None else self.fpir_high):
            return None
        return (
            f"the threshold was set at {self.compared:,} rows and the gallery has {compared:,}: an FPIR of about "
            f"{expected:.2g} is to be expected instead of {self.wanted:g}; calibrate again"
        )


def calibrated(
    score_N: np.ndarray, identity_N: np.ndarray, wanted: float, *, compared: int, templates: bool, by: str
) -> Calibration:
    """The lowest threshold at which no more than the share `wanted` of non-mated searches has a false positive.

    Limits of the FPIR know that the searches of one person are alike (facelt.stats.intervals); those of the threshold
    are where these limits are reached (Woodruff, Confidence Intervals for Medians and Other Position Measures, JASA
    1952). Raises UserError where the searches are too few for the rate to be seen.
    """
    from facelt.stats.intervals import ClusteredCounts, rate_intervals

    if not 0 < wanted < 1:
        raise UserError(f"an FPIR of {wanted:g} is asked for; it must lie between 0 and 1")
    allowed = max_errors(wanted, len(score_N))
    if allowed < 1:
        needed = math.ceil(1 / wanted)
        raise UserError(f"an FPIR of {wanted:g} needs {needed:,} searches of strangers; there are {len(score_N):,}")
    threshold = lowest_threshold(score_N, wanted)
    is_error_N = score_N >= threshold
    names, code_N = np.unique(identity_N, return_inverse=True)
    counts = ClusteredCounts.by_identity(np.bincount(code_N, is_error_N), np.bincount(code_N))
    limits = rate_intervals(counts, level=LEVEL)
    low, high = (float(limit_F[0]) for limit_F in (limits.low_F, limits.high_F))
    is_known = math.isfinite(low) and math.isfinite(high)
    return Calibration(
        wanted=wanted,
        threshold=threshold,
        threshold_low=lowest_threshold(score_N, high) if is_known else None,
        threshold_high=lowest_threshold(score_N, low) if is_known else None,
        fpir=float(is_error_N.mean()),
        fpir_low=low if is_known else None,
        fpir_high=high if is_known else None,
        searches=len(score_N),
        identities=len(names),
        compared=compared,
        templates=templates,
        by=by,
        supported=allowed >= MIN_SUPPORTING_ERRORS,
    )


MILVUS = "milvus:"
# Samples of one change: more are not much faster and would all be lost together.
ENROL_ROWS = 4096
# Probes of one search.
PROBE_ROWS = 1024


class Answer(NamedTuple):
    """The people who reach the threshold, best first; nobody for `unknown`. `best` is the nearest one all the same.

    `best` is None where nobody is enrolled.
    """

    candidates: list[Candidate]
    best: Candidate | None

    @property
    def is_known(self) -> bool:
        """Whether anybody reaches the threshold."""
        return bool(self.candidates)


@dataclass(frozen=True)
class Identification:
    """An answer to each probe, the threshold they were given at, and a warning where that no longer holds.

    `exact` tells that nobody with a higher score was passed over.
    """

    answers: list[Answer]
    threshold: float
    exact: bool
    warning: str | None


class Gallery:
    """What every backend can do, and the thresholds; close it, or use it in a `with` block.

    Threads may share one; a folder's answers one of them at a time, so that threads that search side by side each open
    their own. A process that was forked opens its own.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @classmethod
    def create(cls, where: str | Path, contract: Contract) -> "Gallery":
        """A new gallery in a folder or, as `milvus:URI`, in a Milvus, open for writing; UserError where one exists."""
        if str(where).startswith(MILVUS):
            from facelt.gallery.milvus import MilvusGallery

            return cls(MilvusGallery.create(str(where).removeprefix(MILVUS), contract))
        return cls(LocalGallery.create(where, contract))

    @classmethod
    def open(cls, where: str | Path, *, write: bool = False) -> "Gallery":
        """An existing one. Raises UserError where there is none or, with `write`, where somebody else is writing."""
        if str(where).startswith(MILVUS):
            from facelt.gallery.milvus import MilvusGallery

            return cls(MilvusGallery(str(where).removeprefix(MILVUS)))
        return cls(LocalGallery(where, write=write))

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.backend.close()

    @property
    def contract(self) -> Contract:
        return self.backend.contract

    def count(self) -> Count:
        return self.backend.count()

    def people(self) -> Iterator[tuple[str, int]]:
        """Everybody's name and number of samples, by name."""
        return self.backend.people()

    def enroll(self, samples: Samples, progress: ProgressFn = no_progress) -> int:
        """Enrols samples, ENROL_ROWS at a time, each of these parts as a whole; returns how many.

        A sample whose key exists takes the place of the old one, so that an enrolment that was cut short can simply be
        made again. `progress` is called after each part, which is then safe.

        Raises UserError, with nobody enrolled, where a sample cannot be: see `checked`.
        """
        refuse_repeated(samples.keys)
        starts = range(0, len(samples), ENROL_ROWS)
        parts = [samples.part(slice(start, start + ENROL_ROWS)) for start in starts]
        # A mistake near the end must not leave half of the samples enrolled.
        for part in parts if len(parts) > 1 else ():
            checked(part, self.contract)
            part.notes()
        done = 0
        for part in parts:
            self.backend.upsert(part)
            done += len(part)
            progress("enrolling", done, len(samples))
        return len(samples)

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> Removed:
        """Takes people with all their samples, and samples by key, away for good.

        What is not enrolled is named in the result, and so is what could not be wiped, as `unfinished`.
        """
        return self.backend.remove(people, keys)

    def snapshot(self, path: str | Path) -> None:
        """Writes all that is enrolled as a gallery folder of its own."""
        self.backend.snapshot(Path(path))

    def calibration(self, *, templates: bool = False) -> Calibration | None:
        """The threshold that is kept for comparisons with samples, or with people's means."""
        values = self.backend.setting(_setting(templates))
        return None if values is None else Calibration.of_dict(values)

    def calibrate(
        self,
        probe_PD: np.ndarray,
        identities: Sequence[str],
        fpir: float,
        *,
        templates: bool = False,
        reachability_P: np.ndarray | None = None,
    ) -> Calibration:
        """Sets the threshold by searches for people who are not enrolled, and keeps it.

        Searches of `identities` that are enrolled under the same name are left out. With `reachability_P` the threshold
        is one of the probes' reachability. Raises UserError where too few searches are left, ValueError where there are
        not as many identities, or reachabilities, as probes.
        """
        _refuse_lengths(probe_PD, identities=identities, reachability_P=reachability_P)
        if not self.count().samples:
            raise UserError("nobody is enrolled yet; a threshold is set for a gallery as it is")
        enrolled = {name for name, _ in self.people()}
        kept_P = np.array([name not in enrolled for name in identities], dtype=bool)
        if not kept_P.any():
            raise UserError("none of the searches is of somebody who is not enrolled; calibrate with other people")
        (row_N,) = np.nonzero(kept_P)
        identity_N = np.asarray(identities, dtype=object)[row_N].astype(str)
        compared = self._compared(templates)
        if reachability_P is not None:
            score_N = np.asarray(reachability_P, dtype=np.float64)[row_N]
            if not np.isfinite(score_N).all():
                raise UserError("a reachability of the searches is not finite; embed them again")
        else:
            found = self._search(probe_PD, row_N, 1, templates)
            score_N = np.array([best[0].score if best else -np.inf for _, best in found])
        by = "similarity" if reachability_P is None else "reachability"
        made = calibrated(score_N, identity_N, fpir, compared=compared, templates=templates, by=by)
        self.backend.set_setting(_setting(templates), made.as_dict())
        return made

    def identify(
        self,
        probe_PD: np.ndarray,
        *,
        top: int = 5,
        templates: bool = False,
        threshold: float | None = None,
        reachability_P: np.ndarray | None = None,
    ) -> Identification:
        """The up to `top` people who resemble each probe enough, or nobody.

        The score of a person is that of the best sample or, with `templates`, of the mean of all. What is enough the
        gallery's threshold says, or `threshold`, which is one of similarity. Where the gallery's is one of
        reachability, probes of too low a reachability are nobody.

        Raises UserError without any threshold, or where probes are no embeddings of this gallery's kind; ValueError
        where `top` is below one or there are not as many reachabilities as probes.
        """
        _refuse_lengths(probe_PD, reachability_P=reachability_P)
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        if threshold is not None and math.isnan(threshold):
            raise UserError("the threshold is nan; it must be a number")
        kept = self.calibration(templates=templates) if threshold is None else None
        if threshold is None and kept is None:
            raise UserError("this gallery has no threshold for such searches; calibrate it or give --threshold")
        limit = kept.threshold if kept else threshold
        by_reach = kept is not None and kept.by == "reachability"
        if by_reach and reachability_P is None:
            raise UserError("this gallery's threshold is one of reachability; the probes have none")
        answers = []
        is_exact = True
        floor = -math.inf if by_reach else limit
        found = self._search(probe_PD, np.arange(len(probe_PD)), top, templates, floor)
        for place, (exact, candidates) in enumerate(found):
            is_exact = is_exact and exact
            if by_reach:
                near = candidates if reachability_P[place] >= limit else []
            else:
                near = [one for one in candidates if one.score >= limit]
            answers.append(Answer(near, candidates[0] if candidates else None))
        warning = kept.warning(self._compared(templates)) if kept else None
        return Identification(answers, limit, is_exact, warning)

    def _compared(self, templates: bool) -> int:
        count = self.count()
        return count.people if templates else count.samples

    def _search(
        self, probe_PD: np.ndarray, row_N: np.ndarray, k: int, templates: bool, floor: float = -math.inf
    ) -> Iterator[tuple[bool, list[Candidate]]]:
        for start in range(0, len(row_N), PROBE_ROWS):
            part_N = row_N[start : start + PROBE_ROWS]
            part_PD = checked_rows(probe_PD[part_N], self.contract, lambda row, part_N=part_N: f"probe {part_N[row]}")
            found = self.backend.search(part_PD, k, templates=templates, floor=floor)
            for candidates in found.candidates:
                yield found.exact, candidates


def _refuse_lengths(probe_PD: np.ndarray, **columns: Sequence | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != len(probe_PD):
            raise ValueError(f"{name} has {len(column)} entries for {len(probe_PD)} probes")


def _setting(templates: bool) -> str:
    return "threshold-templates" if templates else "threshold-samples"
