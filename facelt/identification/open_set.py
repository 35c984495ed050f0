"""Open-set identification: half of the identities are enrolled among distractors, the others are strangers to it.

Terms and protocol after ISO/IEC 19795-1 and NIST's FRVT 1:N (NISTIR 8271). A search whose person is enrolled is mated,
one whose person is not is non-mated. Then the halves swap places.

P probes, G distractors, E enrolled images, M mated and N non-mated searches, R ranks, D feature.

FNIR at FPIR, from the searches of both halves (ISO/IEC 19795-1; NIST FRVT 1:N).

FPIR, false positive identification rate: the share of non-mated searches with any candidate at or above the threshold.
FNIR, false negative identification rate: the share of mated searches whose mate is not among the best R candidates, or
is, but below the threshold. The threshold for an FPIR is the lowest that does not exceed it, set in each half on its
own non-mated searches; rates are the means of both halves.

What is compared with the threshold is one of two scores:

- `similarity`: that of the candidate (the mate in a mated search, the best candidate in a non-mated one).
- `reachability`: that of the probe, one number an image: scale / Euclidean distance of its feature to the nearest
  centroid of the training identities, as the model's memory gives it (OLTR, CVPR 2019, section 3.2; scale is 1 in the
  paper and 10 in its released code, which changes the threshold and no rate). It tells how familiar an image looks to
  the model, not how much it resembles anyone in the gallery: candidates are still ranked by similarity, and a search
  of too low a reachability is answered with nobody.

P probes, M mated and N non-mated searches, K points of a curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.identification.error_rates import ENOUGH_ERRORS, allowed_errors
from facelt.identification.rank import hit_ranks
from facelt.search.exact import MatrixLike, similarities
from facelt.search.top_k import top_k
from recordio_tools.progress import ProgressFn, no_progress

ENROLMENT = "one image of each enrolled identity, drawn with the seed; its other images are the mated searches"


@dataclass(frozen=True, eq=False)
class Searches:
    """The searches of one half; positions are among the P probes.

    `enrolled_E` are the images that were enrolled beside the distractors, `gallery` how many images that makes in all.
    `mate_rank_M` is the rank of the mate among them, R + 1 where it is not among the best R; a tie counts for the mate.
    `mate_score_M` and `best_score_N` are the similarities of a mated search's mate and of a non-mated search's best
    candidate, float64.
    """

    enrolled_E: np.ndarray
    gallery: int
    mated_M: np.ndarray
    mate_rank_M: np.ndarray
    mate_score_M: np.ndarray
    nonmated_N: np.ndarray
    best_score_N: np.ndarray


@dataclass(frozen=True, eq=False)
class OpenSetSearches:
    """Both halves' searches, down to rank `rank`; `enrolment` says in words who was enrolled."""

    halves: tuple[Searches, Searches]
    rank: int
    seed: int
    enrolment: str = ENROLMENT


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
    """Search with every image of every identity in both halves; the distractors are read once, for both.

    The identities, in their sorted order, are shuffled with the seed; the first half (the larger one by one identity
    where their number is odd) is enrolled first. Which image of an identity is enrolled is drawn likewise. An identity
    of one image is enrolled and is never a mated search; in the other half it is a non-mated one. Where there are fewer
    than two identities a half is empty, and so are its searches. `progress` is called as distractors are searched;
    `search` searches them and is called as `facelt.search.top_k` is.

    Raises BadRow and UserError as `facelt.search.top_k` does; ValueError on a rank outside 1..254 or on as many
    identities as probes.
    """
    probe_PD, identity_P = np.asarray(probe_PD, dtype=np.float32), np.asarray(identity_P)
    if len(identity_P) != len(probe_PD):
        raise ValueError(f"{len(identity_P)} identities for {len(probe_PD)} probes")
    if not 0 < rank < 255:
        raise ValueError(f"rank {rank}: must lie between 1 and 254")
    distractors = distractor_GD.shape[0]
    distractor_PR = search(probe_PD, distractor_GD, rank, [distractors], cosine=cosine, progress=progress)[0][0]
    halves = []
    for enrolled_E in _enrolments(identity_P, seed):
        mate_P = _mates(identity_P, enrolled_E)
        searched_P = mate_P != np.arange(len(mate_P))
        mated_M = np.flatnonzero(searched_P & (mate_P >= 0))
        nonmated_N = np.flatnonzero(mate_P < 0)
        if len(enrolled_E):
            enrolled_PR = top_k(probe_PD, probe_PD[enrolled_E], rank, cosine=cosine)[0][0]
            best_PR = -np.sort(-np.hstack([distractor_PR, enrolled_PR]), axis=1)[:, :rank]
        else:
            best_PR = distractor_PR
        score_M = similarities(probe_PD, mated_M, probe_PD, mate_P[mated_M], cosine=cosine)
        # The mate is one of the candidates itself: only those strictly more similar stand before it.
        rank_M = hit_ranks(score_M, np.arange(len(mated_M)), best_PR[mated_M])
        gallery = len(enrolled_E) + distractors
        halves.append(Searches(enrolled_E, gallery, mated_M, rank_M, score_M, nonmated_N, best_PR[nonmated_N, 0]))
    return OpenSetSearches(tuple(halves), rank, seed)


def _enrolments(identity_P: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the images enrolled when the first and when the second half is, in ascending order."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    random = np.random.default_rng(seed)
    half_I = np.empty(len(names), dtype=np.int64)
    half_I[random.permutation(len(names))] = np.arange(len(names)) >= (len(names) + 1) // 2
    shuffled_P = random.permutation(len(code_P))
    # Of each identity the image that comes first in the shuffled order.
    _, first_I = np.unique(code_P[shuffled_P], return_index=True)
    drawn_I = shuffled_P[first_I]
    return np.sort(drawn_I[half_I == 0]), np.sort(drawn_I[half_I == 1])


def _mates(identity_P: np.ndarray, enrolled_E: np.ndarray) -> np.ndarray:
    """The enrolled image of each probe's identity, its own position for the image itself, -1 without any: int64 [P]."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    enrolled_I = np.full(len(names), -1, dtype=np.int64)
    enrolled_I[code_P[enrolled_E]] = enrolled_E
    return enrolled_I[code_P]


FPIRS = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class HalfRates:
    """One half at its threshold; `gallery` counts distractors and enrolled images, `enrolled` the latter."""

    threshold: float
    fpir: float
    fnir: float
    mated: int
    nonmated: int
    enrolled: int
    gallery: int


@dataclass(frozen=True)
class OpenSetPoint:
    """The mean FNIR and FPIR of both halves where each keeps FPIR at or below `wanted`.

    Without an answer the numbers are None and `reason` says why. `supported` tells whether the non-mated searches of
    each half suffice for 30 errors at the wanted rate (Doddington's rule, see `error_rates`).
    """

    wanted: float
    fnir: float | None = None
    fpir: float | None = None
    halves: tuple[HalfRates, ...] = ()
    supported: bool = False
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class OpenSetRates:
    """FNIR at each FPIR, and as a curve: float64 [K] each, FPIR ascending. `score` names what was thresholded."""

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
    """FNIR at each FPIR, by similarity or, where it is given, by the probes' reachability.

    The curve has a point at FPIRs spaced evenly in their logarithm, from one error to 1. Raises ValueError on an FPIR
    outside (0, 1] or a reachability that is not finite.
    """
    if wrong := [fpir for fpir in fpirs if not 0 < fpir <= 1]:
        raise ValueError(f"an FPIR of {wrong[0]} is asked for; it must be above 0 and at most 1")
    decisions = [_Decisions.of(half, searches.rank, reachability_P) for half in searches.halves]
    points = tuple(_point(fpir, decisions) for fpir in fpirs)
    curve = _curve(decisions, per_decade)
    return OpenSetRates("similarity" if reachability_P is None else "reachability", searches.rank, points, *curve)


def outcomes(
    half: Searches, threshold: float, rank: int, *, reachability_P: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which searches go wrong at a threshold: misses bool [M] of `mated_M`, false positives bool [N] of `nonmated_N`.

    For figures by group at one threshold, which any share of them adds up to.
    """
    decisions = _Decisions.of(half, rank, reachability_P)
    return decisions.mated_M < threshold, decisions.nonmated_N >= threshold


def lowest_threshold(score_N: np.ndarray, wanted: float) -> float:
    """The lowest threshold that no more than the share `wanted` of these scores, of which there are some, reaches."""
    ordered_N = np.sort(score_N)[::-1]
    allowed = allowed_errors(wanted, len(ordered_N))
    # The first score too many must not match; one that all may match leaves the lowest score there is.
    too_many = ordered_N[allowed] if allowed < len(ordered_N) else np.nextafter(ordered_N[-1], -np.inf)
    return float(np.nextafter(too_many, np.inf))


@dataclass(frozen=True, eq=False)
class _Decisions:
    """What is compared with the threshold: -inf in mated searches whose mate is not among the best R."""

    half: Searches
    mated_M: np.ndarray
    nonmated_N: np.ndarray

    @classmethod
    def of(cls, half: Searches, rank: int, reachability_P: np.ndarray | None) -> "_Decisions":
        mated_M, nonmated_N = half.mate_score_M, half.best_score_N
        if reachability_P is not None:
            reachability_P = np.asarray(reachability_P, dtype=np.float64)
            if not np.isfinite(reachability_P).all():
                raise ValueError(
                    f"the reachability of probe {int(np.argmin(np.isfinite(reachability_P)))} is not finite"
                )
            mated_M, nonmated_N = reachability_P[half.mated_M], reachability_P[half.nonmated_N]
        return cls(half, np.where(half.mate_rank_M <= rank, mated_M, -np.inf), nonmated_N)

    def at(self, wanted: float) -> HalfRates:
        """The rates at the lowest threshold within `wanted`, which must allow an error."""
        threshold = lowest_threshold(self.nonmated_N, wanted)
        miss_M, positive_N = self.mated_M < threshold, self.nonmated_N >= threshold
        counts = len(miss_M), len(positive_N), len(self.half.enrolled_E), self.half.gallery
        return HalfRates(threshold, float(positive_N.mean()), float(miss_M.mean()), *counts)


def _point(wanted: float, decisions: Sequence[_Decisions]) -> OpenSetPoint:
    for number, one in enumerate(decisions, start=1):
        mated, nonmated = len(one.mated_M), len(one.nonmated_N)
        if not mated or not nonmated:
            reason = f"half {number} has {mated:,} mated and {nonmated:,} non-mated searches"
            return OpenSetPoint(wanted, reason=reason)
        if allowed_errors(wanted, nonmated) < 1:
            needed = math.ceil(1 / wanted)
            reason = f"a rate of {wanted:g} needs {needed:,} non-mated searches; half {number} has {nonmated:,}"
            return OpenSetPoint(wanted, reason=reason)
    halves = tuple(one.at(wanted) for one in decisions)
    supported = all(allowed_errors(wanted, half.nonmated) >= ENOUGH_ERRORS for half in halves)
    fnir, fpir = (float(np.mean([getattr(half, rate) for half in halves])) for rate in ("fnir", "fpir"))
    return OpenSetPoint(wanted, fnir, fpir, halves, supported)


def _curve(decisions: Sequence[_Decisions], per_decade: int) -> tuple[np.ndarray, np.ndarray]:
    """FPIR ascending and FNIR, [K] each; empty where a half has no mated or no non-mated searches."""
    fewest = min(len(one.nonmated_N) for one in decisions)
    if not fewest or not all(len(one.mated_M) for one in decisions):
        return np.empty(0), np.empty(0)
    steps = math.ceil(per_decade * math.log10(fewest))
    points = [_point(max(1 / fewest, 10 ** (-k / per_decade)), decisions) for k in range(steps, -1, -1)]
    # Rates too near each other to allow another error are one point.
    fpir_K, first_K = np.unique([point.fpir for point in points], return_index=True)
    return fpir_K, np.array([points[k].fnir for k in first_K])
