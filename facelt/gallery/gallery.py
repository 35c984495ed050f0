"""Gallery of people: enrolment, identification, and calibration of the threshold.

FPIR, false positive identification rate: the share of searches for people who are not enrolled whose best candidate
reaches the threshold (ISO/IEC 19795-1). It rises with the size of the gallery: with n times the rows, each of which can
match by chance, it is 1 - (1 - FPIR)^n.

>>> import numpy as np
>>> from facelt.gallery import Gallery, ModelSpec, Samples
>>> model_spec = ModelSpec("my model", weights_sha256="0" * 64, kind="direct", dimension=3)
>>> with Gallery.create("people", model_spec) as gallery:
...     gallery.enroll(Samples(["ada-1.jpg", "bo-1.jpg"], ["Ada", "Bo"], np.array([[1, 0, 0], [0, 1, 0]])))
...     result = gallery.identify(np.array([[0.9, 0.1, 0], [0, 0, 1]]), threshold=0.5)
2
>>> [[(candidate.person, round(candidate.score, 3)) for candidate in probe.candidates] for probe in result.probes]
[[('Ada', 0.994)], []]
>>> result.probes[1].is_known
False

P probes, N samples or non-mated searches, D feature, I identities.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Backend, Candidate, GalleryCounts, RemovalResult
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples, refuse_duplicate_keys, validated_embeddings, validated_samples
from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, max_errors
from facelt.identification.open_set import lowest_threshold
from recordio_tools.progress import ProgressFn, no_progress

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """Threshold for the FPIR `wanted`, the measured FPIR, and the confidence limits of both.

    `compared` is the number of rows per search, `templates` whether these were templates. `by` is the thresholded
    score: `similarity` of the best candidate or `reachability` of the probe, which does not depend on the size of the
    gallery. `supported` is true if the searches suffice for 30 errors at the wanted rate. Limits are None for searches
    of fewer than two people.
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
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)

    @property
    def advised_searches(self) -> int:
        """Number of searches for which the wanted rate is `supported`."""
        return math.ceil(MIN_SUPPORTING_ERRORS / self.wanted)

    def expected_fpir(self, compared: int) -> float:
        """Returns the expected FPIR at this threshold for another number of rows per search."""
        if self.by == "reachability" or self.fpir == 1 or not self.compared:
            return self.fpir
        return -math.expm1(math.log1p(-self.fpir) * compared / self.compared)

    def warning(self, compared: int) -> str | None:
        """Returns a warning if the threshold does not hold for this number of rows, else None."""
        if not self.compared and compared and self.by == "similarity":
            return "the threshold was set on an empty gallery; calibrate again"
        expected = self.expected_fpir(compared)
        if expected <= (self.wanted if self.fpir_high is None else self.fpir_high):
            return None
        return (
            f"the threshold was set at {self.compared:,} rows and the gallery has {compared:,}: the expected FPIR is "
            f"{expected:.2g} instead of {self.wanted:g}; calibrate again"
        )


def calibrate_threshold(
    score_N: np.ndarray, identity_N: np.ndarray, fpir: float, *, compared: int, templates: bool, by: str
) -> Calibration:
    """Returns the lowest threshold at which at most the share `fpir` of non-mated searches has a false positive.

    Limits of the FPIR are clustered by identity (facelt.stats.intervals); limits of the threshold are the thresholds at
    those FPIRs (Woodruff, Confidence Intervals for Medians and Other Position Measures, JASA 1952). Raises UserError if
    there are too few searches for the rate.
    """
    from facelt.stats.intervals import ClusteredCounts, rate_intervals

    if not 0 < fpir < 1:
        raise UserError(f"FPIR {fpir:g}: must be between 0 and 1")
    allowed = max_errors(fpir, len(score_N))
    if allowed < 1:
        needed = math.ceil(1 / fpir)
        raise UserError(
            f"FPIR {fpir:g} needs {needed:,} searches for people who are not enrolled; there are {len(score_N):,}"
        )
    threshold = lowest_threshold(score_N, fpir)
    is_error_N = score_N >= threshold
    names, code_N = np.unique(identity_N, return_inverse=True)
    counts = ClusteredCounts.by_identity(np.bincount(code_N, is_error_N), np.bincount(code_N))
    limits = rate_intervals(counts, level=CONFIDENCE_LEVEL)
    low, high = (float(limit_F[0]) for limit_F in (limits.low_F, limits.high_F))
    has_limits = math.isfinite(low) and math.isfinite(high)
    return Calibration(
        wanted=fpir,
        threshold=threshold,
        threshold_low=lowest_threshold(score_N, high) if has_limits else None,
        threshold_high=lowest_threshold(score_N, low) if has_limits else None,
        fpir=float(is_error_N.mean()),
        fpir_low=low if has_limits else None,
        fpir_high=high if has_limits else None,
        searches=len(score_N),
        identities=len(names),
        compared=compared,
        templates=templates,
        by=by,
        supported=allowed >= MIN_SUPPORTING_ERRORS,
    )


MILVUS = "milvus:"
# Samples of one transaction: larger ones are hardly faster and lose more if they fail.
ENROL_ROWS = 4096
# Probes of one search.
PROBE_ROWS = 1024


class ProbeResult(NamedTuple):
    """Candidates of one probe at or above the threshold, best first; none for an unknown person.

    `best` is the best candidate even if below the threshold; None if the gallery is empty.
    """

    candidates: list[Candidate]
    best: Candidate | None

    @property
    def is_known(self) -> bool:
        """True if a candidate reaches the threshold."""
        return bool(self.candidates)


@dataclass(frozen=True)
class Identification:
    """Results of all probes, the threshold, and a warning if the threshold no longer holds.

    `exact` is true if no person with a higher score can be missing.
    """

    probes: list[ProbeResult]
    threshold: float
    exact: bool
    warning: str | None


class Gallery:
    """Gallery of any backend, with its thresholds; close it, or use it in a `with` block.

    Threads may share a gallery. A local one serves one thread at a time, so threads that search in parallel should each
    open their own. A forked process must open its own.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @classmethod
    def create(cls, where: str | Path, model_spec: ModelSpec) -> "Gallery":
        """Creates a gallery in a folder or at `milvus:URI`, open for writing. Raises UserError if one exists."""
        if str(where).startswith(MILVUS):
            from facelt.gallery.milvus import MilvusGallery

            return cls(MilvusGallery.create(str(where).removeprefix(MILVUS), model_spec))
        return cls(LocalGallery.create(where, model_spec))

    @classmethod
    def open(cls, where: str | Path, *, write: bool = False) -> "Gallery":
        """Opens a gallery. Raises UserError if there is none or, with `write`, if another process is writing."""
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
    def model_spec(self) -> ModelSpec:
        return self.backend.model_spec

    def count(self) -> GalleryCounts:
        return self.backend.count()

    def people(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the number of samples of each person, sorted by name."""
        return self.backend.people()

    def enroll(self, samples: Samples, progress: ProgressFn = no_progress) -> int:
        """Enrols samples in transactions of ENROL_ROWS; returns their number.

        A sample with an existing key replaces the old one, so an interrupted enrolment can be repeated. `progress` is
        called after each transaction.

        Raises UserError before anything is enrolled if a sample is invalid, see `validated_samples`; if the backend
        cannot store a transaction, with the number of samples enrolled before it.
        """
        refuse_duplicate_keys(samples.keys)
        starts = range(0, len(samples), ENROL_ROWS)
        parts = [samples.select(slice(start, start + ENROL_ROWS)) for start in starts]
        # An invalid sample near the end must not leave the others enrolled.
        for part in parts if len(parts) > 1 else ():
            validated_samples(part, self.model_spec)
            part.json_columns()
        done = 0
        for part in parts:
            try:
                self.backend.upsert(part)
            except UserError as error:
                if not done:
                    raise
                raise UserError(
                    f"{error} ({done:,} of {len(samples):,} samples were enrolled before; the same command completes "
                    "the enrolment)"
                ) from error
            done += len(part)
            progress("enrolling", done, len(samples))
        return len(samples)

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> RemovalResult:
        """Permanently deletes people with all their samples, and samples by key.

        The result names what was not enrolled and, as `unfinished`, what could not be erased.
        """
        return self.backend.remove(people, keys)

    def snapshot(self, path: str | Path) -> None:
        """Writes a copy of the gallery to a new folder."""
        self.backend.snapshot(Path(path))

    def calibration(self, *, templates: bool = False) -> Calibration | None:
        """Returns the stored threshold for comparisons with samples or with templates."""
        values = self.backend.setting(_setting(templates))
        return None if values is None else Calibration.from_dict(values)

    def calibrate(
        self,
        probe_PD: np.ndarray,
        identities: Sequence[str],
        fpir: float,
        *,
        templates: bool = False,
        reachability_P: np.ndarray | None = None,
    ) -> Calibration:
        """Sets and stores the threshold from searches for people who are not enrolled.

        Searches for `identities` that are enrolled under the same name are ignored. With `reachability_P`, the
        threshold applies to the reachability of probes. Raises UserError if too few searches remain, ValueError unless
        there is one identity and one reachability per probe.
        """
        _refuse_lengths(probe_PD, identities=identities, reachability_P=reachability_P)
        if not self.count().samples:
            raise UserError("the gallery is empty; enrol people before calibrating the threshold")
        enrolled = {name for name, _ in self.people()}
        is_used_P = np.array([name not in enrolled for name in identities], dtype=bool)
        if not is_used_P.any():
            raise UserError("all searches are for enrolled people; calibrate with people who are not enrolled")
        (row_N,) = np.nonzero(is_used_P)
        identity_N = np.asarray(identities, dtype=object)[row_N].astype(str)
        compared = self._compared(templates)
        if reachability_P is not None:
            score_N = np.asarray(reachability_P, dtype=np.float64)[row_N]
            if not np.isfinite(score_N).all():
                raise UserError("a reachability is not finite; embed the images again")
        else:
            scores = []
            for part_PD in self._validated_parts(probe_PD, row_N):
                result = self.backend.search(part_PD, 1, templates=templates)
                scores += [best[0].score if best else -np.inf for best in result.candidates]
            score_N = np.array(scores)
        by = "similarity" if reachability_P is None else "reachability"
        calibration = calibrate_threshold(score_N, identity_N, fpir, compared=compared, templates=templates, by=by)
        self.backend.set_setting(_setting(templates), calibration.to_dict())
        return calibration

    def identify(
        self,
        probe_PD: np.ndarray,
        *,
        top: int = 5,
        templates: bool = False,
        threshold: float | None = None,
        reachability_P: np.ndarray | None = None,
    ) -> Identification:
        """Returns up to `top` people at or above the threshold for each probe.

        The score of a person is that of the best sample or, with `templates`, of the template. The threshold is the
        stored one, or the similarity `threshold`. If the stored threshold applies to reachability, probes below it have
        no candidates.

        Raises UserError without a threshold, or if probes are not embeddings of the kind of this gallery; ValueError if
        `top` is below one or there is not one reachability per probe.
        """
        _refuse_lengths(probe_PD, reachability_P=reachability_P)
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        if threshold is not None and math.isnan(threshold):
            raise UserError("the threshold is NaN; it must be a number")
        calibration = self.calibration(templates=templates) if threshold is None else None
        if threshold is None and calibration is None:
            raise UserError("this gallery has no threshold for such searches; calibrate it or pass --threshold")
        limit = calibration.threshold if calibration else threshold
        by_reachability = calibration is not None and calibration.by == "reachability"
        if by_reachability and reachability_P is None:
            raise UserError("the threshold of this gallery applies to reachability, which the probes lack")
        probes: list[ProbeResult] = []
        is_exact = True
        floor = -math.inf if by_reachability else limit
        for part_PD in self._validated_parts(probe_PD, np.arange(len(probe_PD))):
            result = self.backend.search(part_PD, top, templates=templates, floor=floor)
            is_exact = is_exact and result.exact
            for candidates in result.candidates:
                if by_reachability:
                    accepted = candidates if reachability_P[len(probes)] >= limit else []
                else:
                    accepted = [candidate for candidate in candidates if candidate.score >= limit]
                probes.append(ProbeResult(accepted, candidates[0] if candidates else None))
        warning = calibration.warning(self._compared(templates)) if calibration else None
        return Identification(probes, limit, is_exact, warning)

    def _compared(self, templates: bool) -> int:
        count = self.count()
        return count.people if templates else count.samples

    def _validated_parts(self, probe_PD: np.ndarray, row_N: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the probes of these rows, validated, PROBE_ROWS at a time."""
        for start in range(0, len(row_N), PROBE_ROWS):
            part_N = row_N[start : start + PROBE_ROWS]
            yield validated_embeddings(
                probe_PD[part_N], self.model_spec, lambda row, part_N=part_N: f"probe {part_N[row]}"
            )


def _refuse_lengths(probe_PD: np.ndarray, **columns: Sequence | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != len(probe_PD):
            raise ValueError(f"{name} has {len(column)} entries for {len(probe_PD)} probes")


def _setting(templates: bool) -> str:
    return "threshold-templates" if templates else "threshold-samples"
