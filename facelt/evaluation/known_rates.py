"""Rates of known people and strangers: rank-1 accuracy, DIR at FAR by band, and paired differences of scores.

FAR is the share of the strangers' images accepted, that is with a score at or above the threshold; the threshold for a
FAR is the lowest that does not exceed it. DIR, the detection and identification rate, is the share of known images that
are accepted and given the right identity (Phillips, Grother and Micheals, Evaluation Methods in Face Recognition,
2011). Without a threshold it is the rank-1 accuracy.

N known images, S images of strangers, I identities of the known images, F figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, max_errors
from facelt.identification.open_set import lowest_threshold
from facelt.metrics.classification import KNOWN_BANDS
from facelt.metrics.open_set import detection_metrics, oscr_curve
from facelt.stats.comparisons import PairedDifference, comparison_values, decide, paired_differences
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals

LEVEL = 0.95
STRANGER_FARS = (0.1, 0.01, 0.001)
# DIR by band and differences of DIR are measured at this FAR.
COMPARED_FAR = 0.01
ALL_BANDS = ("all", *KNOWN_BANDS)
_POINTS_PER_DECADE = 10


@dataclass(frozen=True, eq=False)
class KnownScores:
    """Result of one score of one model: correctness (bool) and score of each known image, and strangers' scores."""

    model: str
    score: str
    is_right_N: np.ndarray
    score_N: np.ndarray
    stranger_score_S: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        """The model and the score."""
        return self.model, self.score

    def threshold(self, far: float) -> float | None:
        """Returns the lowest threshold that keeps the FAR; None if it allows no error among these strangers."""
        if max_errors(far, len(self.stranger_score_S)) < 1:
            return None
        return lowest_threshold(self.stranger_score_S, far)

    def is_named(self, far: float) -> np.ndarray:
        """Returns which known images are accepted at this FAR and given the right identity, bool [N]."""
        return self.is_right_N & (self.score_N >= self.threshold(far))


class _RateKey(NamedTuple):
    """Figure of one score of one model; `far` is None without a threshold."""

    series: tuple[str, str]
    far: float | None
    band: str


@dataclass(frozen=True, eq=False)
class KnownRates:
    """Rates of all scores of all models on the same N known images, with intervals clustered by identity.

    `label_N` and `band_N` are the identity of each image and its band, an index into `KNOWN_BANDS`. Thresholds are
    taken as fixed.
    """

    results: Sequence[KnownScores]
    label_N: np.ndarray
    band_N: np.ndarray

    def band_counts(self) -> dict[str, dict[str, int]]:
        """Returns the known images and identities of each band and of all."""
        return {
            band: {"images": int(mask_N.sum()), "identities": len(np.unique(self.label_N[mask_N]))}
            for band, mask_N in self._masks.items()
        }

    def score_summary(self, result: KnownScores) -> dict[str, Any]:
        """Returns the values of the report's `KnownScoreResult`."""
        detection = detection_metrics(result.score_N, result.stranger_score_S)
        curve = oscr_curve(result.score_N, result.is_right_N, result.stranger_score_S)
        far_K, dir_K = _curve_at_fars(curve.fpr_T, curve.rate_T, len(result.stranger_score_S))
        is_compared = result.threshold(COMPARED_FAR) is not None
        return {
            "model": result.model,
            "score": result.score,
            "accuracy": {band: self._rate(_RateKey(result.key, None, band)) for band in ALL_BANDS},
            "dir": [self._dir_point(result, far) for far in STRANGER_FARS],
            "dir_by_band": {
                band: self._rate(_RateKey(result.key, COMPARED_FAR, band)) if is_compared else None
                for band in ALL_BANDS
            },
            "auroc": detection.auroc,
            "oscr": curve.area,
            "fpr_at_95_tpr": detection.fpr_at_95_tpr,
            "curve": {"far": far_K, "dir": dir_K},
        }

    def comparisons(self, pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> list[dict[str, Any]]:
        """Returns the values of the report's `KnownComparison` for pairs of a model's score and its reference."""
        rows = [row for series, reference in pairs for row in self._differences(series, reference)]
        verdicts = decide([difference.pair for _, difference in rows], level=LEVEL)
        return [
            labels | comparison_values(difference, verdict)
            for (labels, difference), verdict in zip(rows, verdicts, strict=True)
        ]

    def _differences(
        self, series: tuple[str, str], reference: tuple[str, str]
    ) -> list[tuple[dict[str, Any], PairedDifference]]:
        """Returns the labels and the difference of each metric and band."""
        rows = []
        for metric, far, bands in (("accuracy", None, ALL_BANDS), ("dir", COMPARED_FAR, ("all",))):
            figures, measured = self._figures[far], [band for band in bands if self._masks[band].any()]
            if any(_RateKey(key, far, "all") not in figures.position for key in (series, reference)):
                continue
            keys = [[_RateKey(key, far, band) for band in measured] for key in (reference, series)]
            for band, difference in zip(measured, figures.paired_differences(*keys), strict=True):
                row = {"model": series[0], "score": series[1], "metric": metric, "band": band}
                row |= {"reference_model": reference[0], "reference_score": reference[1]}
                rows.append((row, difference))
        return rows

    def _dir_point(self, result: KnownScores, far: float) -> dict[str, Any]:
        strangers = len(result.stranger_score_S)
        point = {"far": far, "threshold": result.threshold(far), "accepted": None, "rate": None, "reason": None}
        point["supported"] = max_errors(far, strangers) >= MIN_SUPPORTING_ERRORS
        if point["threshold"] is None:
            needed = math.ceil(1 / far)
            point["reason"] = f"a FAR of {100 * far:g} % needs {needed:,} images of strangers; there are {strangers:,}"
        else:
            point["accepted"] = int((result.stranger_score_S >= point["threshold"]).sum())
            point["rate"] = self._rate(_RateKey(result.key, far, "all"))
        return point

    def _rate(self, key: _RateKey) -> dict[str, Any]:
        return self._figures[key.far].rate(key)

    @cached_property
    def _masks(self) -> dict[str, np.ndarray]:
        """The known images of each band and all of them, bool [N] each."""
        bands = {band: self.band_N == index for index, band in enumerate(KNOWN_BANDS)}
        return {"all": np.ones(len(self.band_N), dtype=bool), **bands}

    @cached_property
    def _figures(self) -> dict[float | None, "_Figures"]:
        """The figures at each FAR, and without a threshold (None)."""
        figures = {}
        for far in (None, *STRANGER_FARS):
            bands = ALL_BANDS if far in (None, COMPARED_FAR) else ("all",)
            results = [result for result in self.results if far is None or result.threshold(far) is not None]
            hits = {result.key: result.is_right_N if far is None else result.is_named(far) for result in results}
            keys = [_RateKey(series, far, band) for series in hits for band in bands]
            figures[far] = _Figures.measure(keys, hits, self._masks, self.label_N)
        return figures


@dataclass(frozen=True, eq=False)
class _Figures:
    """Hits and trials of some figures by identity, their intervals, and the position of each figure."""

    position: dict[_RateKey, int]
    counts: ClusteredCounts
    intervals: RateIntervals

    @classmethod
    def measure(
        cls,
        keys: Sequence[_RateKey],
        hits: dict[tuple[str, str], np.ndarray],
        masks: dict[str, np.ndarray],
        label_N: np.ndarray,
    ) -> "_Figures":
        names_I, code_N = np.unique(label_N, return_inverse=True)
        hit_FI, trial_FI = np.zeros((2, len(keys), len(names_I)))
        for f, key in enumerate(keys):
            hit_FI[f] = np.bincount(code_N[masks[key.band] & hits[key.series]], minlength=len(names_I))
            trial_FI[f] = np.bincount(code_N[masks[key.band]], minlength=len(names_I))
        counts, position = ClusteredCounts.by_identity(hit_FI, trial_FI), {key: f for f, key in enumerate(keys)}
        pooled = counts.only([position[key._replace(band="all")] for key in keys])
        return cls(position, counts, rate_intervals(counts, level=LEVEL, pooled=pooled))

    def rate(self, key: _RateKey) -> dict[str, Any]:
        """Returns the values of the report's `KnownRate`."""
        f, intervals = self.position[key], self.intervals
        return {
            "rate": intervals.rate_F[f],
            "low": intervals.low_F[f],
            "high": intervals.high_F[f],
            "images": int(self.counts.trial_F[f]),
            "identities": int(intervals.identities_F[f]),
        }

    def paired_differences(self, reference: Sequence[_RateKey], others: Sequence[_RateKey]) -> list[PairedDifference]:
        """Returns the rates of `others` minus those of `reference`, figure by figure; the first is of all bands."""
        rows, reference_rows = ([self.position[key] for key in keys] for keys in (others, reference))
        hit_FI, trial_FI = self.counts.error_FI, self.counts.trial_FI
        return paired_differences(hit_FI[reference_rows], hit_FI[rows], trial_FI[rows], level=LEVEL, whole=0)


def _curve_at_fars(far_T: np.ndarray, dir_T: np.ndarray, strangers: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns FARs, log-spaced from one stranger accepted to all, and DIR at the lowest thresholds that keep them.

    `far_T` and `dir_T` are the FAR, ascending, and DIR at each threshold.
    """
    steps = math.ceil(_POINTS_PER_DECADE * math.log10(strangers))
    far_K = np.unique(np.maximum(1 / strangers, 10.0 ** (-np.arange(steps, -1, -1) / _POINTS_PER_DECADE)))
    # The last point within a FAR has the lowest threshold.
    last_K = np.searchsorted(far_T, far_K * (1 + 1e-12), side="right") - 1
    return far_K, dir_T[last_K]
