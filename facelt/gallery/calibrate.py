"""The threshold that strangers seldom reach in a gallery of this size, and until which size it holds.

FPIR, false positive identification rate: the share of searches for people who are not enrolled whose best candidate
reaches the threshold (ISO/IEC 19795-1). It rises with the gallery: who is compared with n times as many rows, each of
which matches by chance, is a false positive with 1 - (1 - FPIR)^n.

N non-mated searches, I identities.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification import lowest_threshold
from facelt.identification.error_rates import ENOUGH_ERRORS, allowed_errors

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
        return math.ceil(ENOUGH_ERRORS / self.wanted)

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

    Limits of the FPIR know that the searches of one person are alike (facelt.metrics.clustered); those of the threshold
    are where these limits are reached (Woodruff, Confidence Intervals for Medians and Other Position Measures, JASA
    1952). Raises UserError where the searches are too few for the rate to be seen.
    """
    from facelt.metrics.clustered import TouchedCounts, rate_intervals

    if not 0 < wanted < 1:
        raise UserError(f"an FPIR of {wanted:g} is asked for; it must lie between 0 and 1")
    allowed = allowed_errors(wanted, len(score_N))
    if allowed < 1:
        needed = math.ceil(1 / wanted)
        raise UserError(f"an FPIR of {wanted:g} needs {needed:,} searches of strangers; there are {len(score_N):,}")
    threshold = lowest_threshold(score_N, wanted)
    is_error_N = score_N >= threshold
    names, code_N = np.unique(identity_N, return_inverse=True)
    counts = TouchedCounts.of_searches(np.bincount(code_N, is_error_N), np.bincount(code_N))
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
        supported=allowed >= ENOUGH_ERRORS,
    )
