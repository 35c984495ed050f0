"""Verification on a list of pairs (LFW protocol): 10-fold accuracy, and TAR at FAR with the limits of both.

U images, D feature, P pairs, I identities, A false accept rates, F folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification.error_rates import OperatingPoint, ScoreGrid, ScoreHistograms, top_threshold_reason
from facelt.metrics.ten_fold import TenFoldAccuracy, squared_distances, ten_fold, unmeasurable_reason
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals

PAIR_FARS = (1e-4, 1e-3, 1e-2, 1e-1)
"""The usual list of 6,000 pairs has 3,000 non-mated ones, too few for lower rates."""
PAIR_LEVEL = 0.95


@dataclass(frozen=True)
class PairOperatingPoint:
    """Operating point with the confidence limits of TAR and FAR at its threshold.

    The threshold is set on the same pairs, so the limits of FAR show its uncertainty. None without an operating point,
    or with fewer than two identities.
    """

    point: OperatingPoint
    tar_limits: tuple[float, float] | None = None
    far_limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class PairRates:
    """Operating points on one list; `people` counts the identities joined by mated pairs.

    `highest_score` is the highest one of all pairs, a cosine if `unit`.
    """

    points: tuple[PairOperatingPoint, ...]
    mated: int
    nonmated: int
    people: int
    highest_score: float
    unit: bool

    def report(self) -> dict[str, Any]:
        """Returns counts and operating points as the schemas of reports have them."""
        return {
            "mated": self.mated,
            "nonmated": self.nonmated,
            "people": self.people,
            "points": [
                {
                    "wanted": limited.point.wanted,
                    "tar": limited.point.tar,
                    "tar_limits": limited.tar_limits,
                    "far": limited.point.fmr,
                    "far_limits": limited.far_limits,
                    "score": limited.point.threshold,
                    "false_matches": limited.point.false_matches,
                    "supported": limited.point.supported,
                    "reason": limited.point.reason,
                    "warning": self._warning(limited.point.threshold),
                }
                for limited in self.points
            ],
        }

    def _warning(self, threshold: float | None) -> str | None:
        if threshold is None:
            return None
        reason = top_threshold_reason(threshold, self.highest_score, is_cosine=self.unit)
        return reason and f"the threshold {reason}"


@dataclass(frozen=True, eq=False)
class PairVerification(PairRates):
    """Results on one list of image pairs: ten-fold accuracy as well."""

    ten_fold: TenFoldAccuracy

    def report(self) -> dict[str, Any]:
        """Returns the section of one set in schema `facelt.verification/1`, without its name."""
        folds = self.ten_fold
        return super().report() | {
            "accuracy": folds.mean,
            "accuracy_std": folds.std,
            "accuracy_folds": folds.accuracy_F.tolist(),
            "distance_folds": folds.threshold_F.tolist(),
        }


def verify_pairs(
    embedding_UD: np.ndarray, left_P: np.ndarray, right_P: np.ndarray, same_P: np.ndarray, *, unit: bool
) -> PairVerification:
    """Returns the verification results of pairs, given as positions among the embeddings of the distinct images.

    The score is the cosine for a `unit` kind, else the inner product; see `squared_distances`.

    Raises UserError on fewer than ten pairs, on only mated or only non-mated pairs, and on an embedding that is not
    finite or, for a unit kind, is zero.
    """
    if reason := unmeasurable_reason(same_P):
        raise UserError(reason)
    distance_P = squared_distances(embedding_UD, left_P, right_P, unit=unit)
    if (invalid_P := np.isnan(distance_P)).any():
        raise UserError(f"pair {int(np.argmax(invalid_P))}: an embedding is not finite or is zero")
    rates = pair_rates(1 - distance_P / 2, left_P, right_P, same_P, PAIR_FARS, unit=unit)
    return PairVerification(**vars(rates), ten_fold=ten_fold(distance_P, same_P))


def pair_rates(
    score_P: np.ndarray,
    left_P: np.ndarray,
    right_P: np.ndarray,
    same_P: np.ndarray,
    fars: Sequence[float],
    *,
    unit: bool,
) -> PairRates:
    """Returns TAR at each FAR from the scores of pairs of images or templates; cosines if `unit`.

    Confidence limits are clustered by identity, since pairs of one person are correlated; identities are the connected
    components of the mated pairs.
    """
    grid = ScoreGrid.for_bound(max(1.0, float(np.abs(score_P).max())), ScoreGrid.steps)
    # Rounded to the grid, so that histogram and pair counts agree at every threshold.
    score_P = np.rint(score_P / grid.resolution) * grid.resolution
    counts = ScoreHistograms(grid, grid.count(score_P[same_P]), grid.count(score_P[~same_P]))
    images = 1 + int(max(left_P.max(), right_P.max()))
    identity_U = connected_identities(images, left_P[same_P], right_P[same_P])
    identity_PE = np.stack([identity_U[left_P], identity_U[right_P]], axis=1)
    return PairRates(
        _with_limits(counts.points(tuple(fars)), score_P, same_P, identity_PE),
        counts.mated,
        counts.nonmated,
        len(np.unique(identity_PE)),
        counts.highest_score,
        unit,
    )


def connected_identities(images: int, left_M: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    """Returns the identity of each image, int32 [U]: the connected components of the mated pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = coo_array((np.ones(len(left_M), dtype=bool), (left_M, right_M)), shape=(images, images))
    return connected_components(pairs, directed=False)[1]


def _with_limits(
    points: tuple[OperatingPoint, ...], score_P: np.ndarray, same_P: np.ndarray, identity_PE: np.ndarray
) -> tuple[PairOperatingPoint, ...]:
    measured = [point for point in points if point.threshold is not None]
    if not measured:
        return tuple(PairOperatingPoint(point) for point in points)
    match_AP = score_P >= np.array([point.threshold for point in measured])[:, None]
    missed = _intervals(~match_AP[:, same_P], identity_PE[same_P])
    false_match = _intervals(match_AP[:, ~same_P], identity_PE[~same_P])
    limits = {
        point.wanted: (
            _limits(1 - missed.high_F[a], 1 - missed.low_F[a]),
            _limits(false_match.low_F[a], false_match.high_F[a]),
        )
        for a, point in enumerate(measured)
    }
    return tuple(PairOperatingPoint(point, *limits.get(point.wanted, ())) for point in points)


def _intervals(error_AP: np.ndarray, identity_PE: np.ndarray) -> RateIntervals:
    """Returns the intervals of error rates among pairs, [A]; a pair is a trial of each of its identities."""
    identities = int(identity_PE.max()) + 1
    is_different_P = identity_PE[:, 0] != identity_PE[:, 1]

    def involved(is_counted_P: np.ndarray) -> np.ndarray:
        sides = identity_PE[is_counted_P, 0], identity_PE[is_counted_P & is_different_P, 1]
        return sum(np.bincount(side, minlength=identities) for side in sides).astype(np.float64)

    trial_I = involved(np.ones(len(identity_PE), dtype=bool))
    error_AI = np.stack([involved(error_P) for error_P in error_AP])
    trial_A = np.full(len(error_AP), float(len(identity_PE)))
    trial_AI = np.broadcast_to(trial_I, error_AI.shape)
    return rate_intervals(ClusteredCounts(error_AP.sum(axis=1), trial_A, error_AI, trial_AI), level=PAIR_LEVEL)


def _limits(low: float, high: float) -> tuple[float, float] | None:
    return None if np.isnan(low) else (float(low), float(high))
