"""The thresholds that hold for every group alike, and the set each was set on.

S searches.
"""

from dataclasses import dataclass

import numpy as np

from facelt.auditing.inputs import Inputs
from facelt.auditing.searches import best_of_strangers, open_set
from facelt.config.audit import AuditConfig
from facelt.errors import UserError
from facelt.identification import ScoreHistograms
from facelt.identification.error_rates import ENOUGH_ERRORS, allowed_errors
from facelt.metrics.groups import Grouping, Units


@dataclass(frozen=True)
class Threshold:
    """A threshold, the rate it was `wanted` for and the rate it has there among `trials`; given ones have neither.

    `supported` tells whether the trials suffice for 30 errors at the wanted rate (Doddington's rule).
    """

    score: float
    kind: str
    where: str
    wanted: float | None = None
    rate: float | None = None
    trials: int | None = None
    supported: bool | None = None


def threshold_for_fmr(histograms: ScoreHistograms, fmr: float, where: str) -> Threshold:
    """The lowest threshold that keeps the FMR of all pairs at or below `fmr`. Raises UserError without an answer."""
    point = histograms.point(fmr)
    if point.threshold is None:
        raise UserError(f"threshold.fmr: no threshold for an FMR of {fmr:g} on {where}: {point.reason}")
    return Threshold(point.threshold, "fmr", where, fmr, point.fmr, histograms.nonmated, point.supported)


def threshold_for_fpir(best_S: np.ndarray, fpir: float, where: str) -> Threshold:
    """The lowest threshold that keeps the FPIR of non-mated searches at or below `fpir`.

    `best_S` is the best score that each search found. Raises UserError where too few searches allow no error.
    """
    allowed = allowed_errors(fpir, len(best_S))
    if allowed < 1:
        raise UserError(
            f"threshold.fpir: no threshold for an FPIR of {fpir:g} on {where}: that needs {int(np.ceil(1 / fpir)):,} "
            f"non-mated searches, there are {len(best_S):,}"
        )
    # One more than is allowed scores this much; anything above it is enough.
    score = float(np.nextafter(np.sort(best_S)[::-1][allowed], np.inf))
    rate = float(np.mean(best_S >= score))
    return Threshold(score, "fpir", where, fpir, rate, len(best_S), allowed >= ENOUGH_ERRORS)


def choose_thresholds(config: AuditConfig, inputs: Inputs, best_S: np.ndarray | None) -> dict[str, Threshold]:
    """The thresholds of `pairs` and, where there are searches (`best_S`), of `searches`; one serves both if alone.

    They are set on the audited set, or on `threshold.store` with its own searches among the same distractors.
    """
    wanted, subject, where = config.threshold.wanted, inputs.subject, "the audited set"
    if config.threshold.score is not None:
        given = Threshold(config.threshold.score, "given", "named by the auditor")
        return {"pairs": given} if best_S is None else {"pairs": given, "searches": given}
    if inputs.calibration is not None:
        subject, where = inputs.calibration, str(config.threshold.store)
        if best_S is not None and wanted.fpir is not None:
            best_S = best_of_strangers(open_set(subject.embedded, inputs.gallery, config.statistics.seed))
    found = {}
    if wanted.fmr is not None:
        units = Units.of(subject.enrolled(subject.identities), {})
        everyone = Grouping((), ((),), np.zeros(len(units), dtype=np.int64))
        found["pairs"] = threshold_for_fmr(subject.comparison.histograms(units, everyone).everyone, wanted.fmr, where)
    if wanted.fpir is not None and best_S is not None:
        found["searches"] = threshold_for_fpir(best_S, wanted.fpir, where)
    if not found:
        raise UserError("threshold.fpir: a scores file holds no searches; name threshold.fmr or threshold.score")
    one = next(iter(found.values()))
    return {use: found.get(use, one) for use in (("pairs",) if best_S is None else ("pairs", "searches"))}
