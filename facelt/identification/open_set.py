"""Open-set identification: FNIR at FPIR (ISO/IEC 19795-1; NIST FRVT 1:N, NISTIR 8271).

Half of the identities are enrolled among distractors, the others are not; then the halves swap roles. A search is mated
if its person is enrolled, else non-mated.

FPIR, false positive identification rate: the share of non-mated searches with a candidate at or above the threshold.
FNIR, false negative identification rate: the share of mated searches whose mate is not among the best R candidates or
is below the threshold. The threshold for an FPIR is the lowest that does not exceed it, set in each half on its own
non-mated searches; rates are the means of both halves.

The threshold applies to one of two scores:

- `similarity` of the candidate (the mate in a mated search, the best candidate in a non-mated one).
- `reachability` of the probe, one number per image: scale / Euclidean distance of its feature to the nearest centroid
  of the training identities, from the model's memory (OLTR, CVPR 2019, section 3.2; scale is 1 in the paper and 10 in
  its released code, which changes the threshold but no rate). It measures how familiar an image is to the model, not
  its similarity to anyone in the gallery: candidates are still ranked by similarity, and a search with a reachability
  below the threshold returns no candidate.

P probes, G distractors, E enrolled images, M mated and N non-mated searches, R ranks, D feature, I identities,
K points of a curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, max_errors
from facelt.identification.rank import hit_ranks
from facelt.search.exact import MatrixLike, similarities
from facelt.search.top_k import top_k
from recordio_tools.progress import ProgressFn, no_progress

ENROLMENT = "one image of each enrolled identity, drawn with the seed; its other images are the mated searches"


@dataclass(frozen=True, eq=False)
class HalfSearches:
    """Searches of one half; positions are among the P probes.

    `enrolled_E` are the images enrolled in addition to the distractors, `gallery` the number of images in all.
    `mate_rank_M` is the rank of the mate, R + 1 if it is not among the best R; ties count in favour of the mate.
    `mate_score_M` and `best_score_N` are the similarities of the mate of a mated search and of the best candidate of a
    non-mated search, float64.
    """

    enrolled_E: np.ndarray
    gallery: int
    mated_M: np.ndarray
    mate_rank_M: np.ndarray
    mate_score_M: np.ndarray
    nonmated_N: np.ndarray
    best_score_N: np.ndarray

    def highest_score(self, reachability_P: np.ndarray | None = None) -> float:
        """Returns the highest score of a mate or of a candidate, or the highest reachability; -inf without searches."""
        score_MN = np.concatenate([self.mate_score_M, self.best_score_N])
        if reachability_P is not None:
            score_MN = reachability_P[np.concatenate([self.mated_M, self.nonmated_N])]
        return float(score_MN.max(initial=-np.inf))


@dataclass(frozen=True, eq=False)
class OpenSetSearches:
    """Searches of both halves, whose mates count down to rank `rank`; `enrolment` describes the enrolled images.

    `part` is the word for a half in messages. `seed` is None if a protocol lists the enrolled images.
    """

    halves: tuple[HalfSearches, HalfSearches]
    rank: int
    seed: int | None
    enrolment: str = ENROLMENT
    part: str = "half"


def open_set_searches(
    probe_PD: np.ndarray,
    identity_P: np.ndarray,
    distractor_GD: MatrixLike,
    *,
    rank: int = 1,
    seed: int = 0,
    cosine: bool = False,
    search: Callable[..., tuple[np.ndarray, np.ndarray]] = top_k,
    progress: ProgressFn = no_progress,
) -> OpenSetSearches:
    """Searches every image of every identity in both halves; the distractors are read once for both.

    The sorted identities are shuffled with the seed; the first half (larger by one identity if their number is odd) is
    enrolled first. The enrolled image of an identity is drawn with the same generator. An identity with one image is
    enrolled but never a mated search; in the other half it is a non-mated search. With fewer than two identities, one
    half and its searches are empty. `progress` counts distractors; `search` has the signature of `top_k`.

    Raises BadRow and UserError as `top_k` does; ValueError on a rank outside 1..254 or unless there is one identity per
    probe.
    """
    probe_PD, identity_P = np.asarray(probe_PD, dtype=np.float32), np.asarray(identity_P)
    if len(identity_P) != len(probe_PD):
        raise ValueError(f"{len(identity_P)} identities for {len(probe_PD)} probes")
    if not 0 < rank < 255:
        raise ValueError(f"rank {rank}: must be 1 to 254")
    distractors = distractor_GD.shape[0]
    distractor_PR = search(probe_PD, distractor_GD, rank, [distractors], cosine=cosine, progress=progress)[0][0]
    halves = []
    for enrolled_E in _enrolments(identity_P, seed):
        mate_P = _mates(identity_P, enrolled_E)
        is_searched_P = mate_P != np.arange(len(mate_P))
        mated_M = np.flatnonzero(is_searched_P & (mate_P >= 0))
        nonmated_N = np.flatnonzero(mate_P < 0)
        if len(enrolled_E):
            enrolled_PR = top_k(probe_PD, probe_PD[enrolled_E], rank, cosine=cosine)[0][0]
            best_PR = -np.sort(-np.hstack([distractor_PR, enrolled_PR]), axis=1)[:, :rank]
        else:
            best_PR = distractor_PR
        score_M = similarities(probe_PD, mated_M, probe_PD, mate_P[mated_M], cosine=cosine)
        # The mate is a candidate as well: only strictly more similar ones rank before it.
        rank_M = hit_ranks(score_M, np.arange(len(mated_M)), best_PR[mated_M])
        gallery = len(enrolled_E) + distractors
        halves.append(HalfSearches(enrolled_E, gallery, mated_M, rank_M, score_M, nonmated_N, best_PR[nonmated_N, 0]))
    return OpenSetSearches(tuple(halves), rank, seed)


def _enrolments(identity_P: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the images enrolled for the first and for the second half, in ascending order."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    random = np.random.default_rng(seed)
    half_I = np.empty(len(names), dtype=np.int64)
    half_I[random.permutation(len(names))] = np.arange(len(names)) >= (len(names) + 1) // 2
    shuffled_P = random.permutation(len(code_P))
    # The first image of each identity in the shuffled order.
    _, first_I = np.unique(code_P[shuffled_P], return_index=True)
    drawn_I = shuffled_P[first_I]
    return np.sort(drawn_I[half_I == 0]), np.sort(drawn_I[half_I == 1])


def _mates(identity_P: np.ndarray, enrolled_E: np.ndarray) -> np.ndarray:
    """Returns the enrolled image of each probe's identity (possibly itself), -1 if there is none: int64 [P]."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    enrolled_I = np.full(len(names), -1, dtype=np.int64)
    enrolled_I[code_P[enrolled_E]] = enrolled_E
    return enrolled_I[code_P]


# 0.003 is the operating point that NIST's evaluation of identification (FRTE 1:N) reports.
FPIRS = (0.1, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class HalfRates:
    """Rates of one half at its threshold; `gallery` counts distractors and enrolled images, `enrolled` the latter."""

    threshold: float
    fpir: float
    fnir: float
    mated: int
    nonmated: int
    enrolled: int
    gallery: int


@dataclass(frozen=True)
class OpenSetPoint:
    """Mean FNIR and FPIR of both halves, each with FPIR at or below `wanted`.

    If there is no such threshold, the numbers are None and `reason` says why. `supported` is true if the non-mated
    searches of each half suffice for 30 errors at the wanted rate (Doddington's rule, see `error_rates`).
    """

    wanted: float
    fnir: float | None = None
    fpir: float | None = None
    halves: tuple[HalfRates, ...] = ()
    supported: bool = False
    reason: str | None = None

    def report(self) -> dict[str, Any]:
        """Returns the point in the schemas of reports."""
        halves = [
            {
                "threshold": half.threshold,
                "fpir": half.fpir,
                "fnir": half.fnir,
                "false_positives": round(half.fpir * half.nonmated),
            }
            for half in self.halves
        ]
        keys = ("wanted", "fnir", "fpir", "supported", "reason")
        return {**{key: getattr(self, key) for key in keys}, "halves": halves}


@dataclass(frozen=True, eq=False)
class OpenSetRates:
    """FNIR at each FPIR, and the curve, float64 [K] each, FPIR ascending; `score` names the thresholded score."""

    score: str
    rank: int
    points: tuple[OpenSetPoint, ...]
    fpir_K: np.ndarray
    fnir_K: np.ndarray


def open_set_rates(
    searches: OpenSetSearches,
    fpirs: Sequence[float] = FPIRS,
    *,
    reachability_P: np.ndarray | None = None,
    per_decade: int = 10,
) -> OpenSetRates:
    """Returns FNIR at each FPIR, by similarity or, if given, by the reachability of the probes.

    The curve has log-spaced FPIRs, from one error to 1. Raises ValueError on an FPIR outside (0, 1] or a reachability
    that is not finite.
    """
    if invalid := [fpir for fpir in fpirs if not 0 < fpir <= 1]:
        raise ValueError(f"FPIR {invalid[0]}: must be above 0 and at most 1")
    halves = [_HalfScores.of(half, searches.rank, reachability_P) for half in searches.halves]
    points = tuple(_point(fpir, halves, searches.part) for fpir in fpirs)
    curve = _curve(halves, per_decade)
    return OpenSetRates("similarity" if reachability_P is None else "reachability", searches.rank, points, *curve)


def gallery_searches(
    row_PD: np.ndarray,
    identity_P: np.ndarray,
    probe_S: np.ndarray,
    enrolled_E: np.ndarray,
    *,
    rank: int,
    cosine: bool = False,
    search: Callable[..., tuple[np.ndarray, np.ndarray]] = top_k,
    progress: ProgressFn = no_progress,
) -> HalfSearches:
    """Searches the probes in a gallery that a protocol lists; both are positions among the P rows.

    An identity may have several enrolled rows: its mate is the most similar one. Rows of the identity -1 are of unknown
    people, which have no mates. `search` has the signature of `top_k`.

    Raises BadRow and UserError as `top_k` does; ValueError on a rank outside 1..254.
    """
    if not 0 < rank < 255:
        raise ValueError(f"rank {rank}: must be 1 to 254")
    gallery_ED = row_PD[enrolled_E]
    best_SR = search(row_PD[probe_S], gallery_ED, rank, cosine=cosine, progress=progress)[0][0]
    search_M, enrolled_M = _listed_pairs(identity_P[probe_S], identity_P[enrolled_E])
    score_M = similarities(row_PD, probe_S[search_M], gallery_ED, enrolled_M, cosine=cosine)
    mate_score_S = np.full(len(probe_S), -np.inf)
    np.maximum.at(mate_score_S, search_M, score_M)
    (mated_M,), (nonmated_N,) = np.nonzero(mate_score_S > -np.inf), np.nonzero(mate_score_S == -np.inf)
    # No other mate is more similar: only rows of other identities rank before the mate.
    rank_M = hit_ranks(mate_score_S[mated_M], np.arange(len(mated_M)), best_SR[mated_M])
    return HalfSearches(
        enrolled_E,
        len(enrolled_E),
        probe_S[mated_M],
        rank_M,
        mate_score_S[mated_M],
        probe_S[nonmated_N],
        best_SR[nonmated_N, 0],
    )


def _listed_pairs(identity_S: np.ndarray, identity_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of every probe and enrolled row of one known identity, int64 [M] each, by probe."""
    order_E = np.argsort(identity_E, kind="stable")
    ordered_E = identity_E[order_E]
    first_S, end_S = (np.searchsorted(ordered_E, identity_S, side=side) for side in ("left", "right"))
    size_S = np.where(identity_S == -1, 0, end_S - first_S)
    search_M = np.repeat(np.arange(len(identity_S)), size_S)
    within_M = np.arange(len(search_M)) - np.repeat(np.cumsum(size_S) - size_S, size_S)
    return search_M, order_E[first_S[search_M] + within_M]


def search_outcomes(
    half: HalfSearches, threshold: float, rank: int, *, reachability_P: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors at a threshold: misses bool [M] of `mated_M`, false positives bool [N] of `nonmated_N`.

    For rates by group at a common threshold.
    """
    scores = _HalfScores.of(half, rank, reachability_P)
    return scores.mated_M < threshold, scores.nonmated_N >= threshold


def lowest_threshold(score_N: np.ndarray, max_share: float) -> float:
    """Returns the lowest threshold that at most the share `max_share` of the scores (at least one) reaches."""
    ordered_N = np.sort(score_N)[::-1]
    allowed = max_errors(max_share, len(ordered_N))
    # The first score in excess must not match; if all may match, the threshold is the lowest score.
    excess = ordered_N[allowed] if allowed < len(ordered_N) else np.nextafter(ordered_N[-1], -np.inf)
    return float(np.nextafter(excess, np.inf))


@dataclass(frozen=True, eq=False)
class _HalfScores:
    """Thresholded scores of one half: -inf for mated searches whose mate is not among the best R."""

    half: HalfSearches
    mated_M: np.ndarray
    nonmated_N: np.ndarray

    @classmethod
    def of(cls, half: HalfSearches, rank: int, reachability_P: np.ndarray | None) -> "_HalfScores":
        mated_M, nonmated_N = half.mate_score_M, half.best_score_N
        if reachability_P is not None:
            reachability_P = np.asarray(reachability_P, dtype=np.float64)
            if not np.isfinite(reachability_P).all():
                raise ValueError(
                    f"the reachability of probe {int(np.argmin(np.isfinite(reachability_P)))} is not finite"
                )
            mated_M, nonmated_N = reachability_P[half.mated_M], reachability_P[half.nonmated_N]
        return cls(half, np.where(half.mate_rank_M <= rank, mated_M, -np.inf), nonmated_N)

    def at(self, fpir: float) -> HalfRates:
        """Returns the rates at the lowest threshold for `fpir`, which must allow at least one error."""
        threshold = lowest_threshold(self.nonmated_N, fpir)
        miss_M, positive_N = self.mated_M < threshold, self.nonmated_N >= threshold
        counts = len(miss_M), len(positive_N), len(self.half.enrolled_E), self.half.gallery
        return HalfRates(threshold, float(positive_N.mean()), float(miss_M.mean()), *counts)


def _point(target_fpir: float, halves: Sequence[_HalfScores], part: str = "half") -> OpenSetPoint:
    for number, half in enumerate(halves, start=1):
        mated, nonmated = len(half.mated_M), len(half.nonmated_N)
        if not mated or not nonmated:
            reason = f"{part} {number} has {mated:,} mated and {nonmated:,} non-mated searches"
            return OpenSetPoint(target_fpir, reason=reason)
        if max_errors(target_fpir, nonmated) < 1:
            needed = math.ceil(1 / target_fpir)
            reason = f"a rate of {target_fpir:g} needs {needed:,} non-mated searches; {part} {number} has {nonmated:,}"
            return OpenSetPoint(target_fpir, reason=reason)
    rates = tuple(half.at(target_fpir) for half in halves)
    supported = all(max_errors(target_fpir, half.nonmated) >= MIN_SUPPORTING_ERRORS for half in rates)
    fnir, fpir = (float(np.mean([getattr(half, name) for half in rates])) for name in ("fnir", "fpir"))
    return OpenSetPoint(target_fpir, fnir, fpir, rates, supported)


def _curve(halves: Sequence[_HalfScores], per_decade: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns FPIR ascending and FNIR, [K] each; empty if a half has no mated or no non-mated searches."""
    fewest = min(len(half.nonmated_N) for half in halves)
    if not fewest or not all(len(half.mated_M) for half in halves):
        return np.empty(0), np.empty(0)
    steps = math.ceil(per_decade * math.log10(fewest))
    points = [_point(max(1 / fewest, 10 ** (-k / per_decade)), halves) for k in range(steps, -1, -1)]
    # FPIRs that allow the same number of errors are one point.
    fpir_K, first_K = np.unique([point.fpir for point in points], return_index=True)
    return fpir_K, np.array([points[k].fnir for k in first_K])
