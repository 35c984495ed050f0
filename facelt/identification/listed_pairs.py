"""Verification on a list of pairs: 10-fold accuracy, and TAR at FAR with the limits of both.

U images, D feature, P pairs, I people, A false accept rates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification.error_rates import OperatingPoint, ScoreHistograms
from facelt.identification.score_grid import ScoreGrid
from facelt.metrics.clustered import RateIntervals, TouchedCounts, rate_intervals
from facelt.metrics.ten_fold import TenFold, squared_distances, ten_fold, why_unmeasurable

LISTED_FARS = (1e-4, 1e-3, 1e-2, 1e-1)
"""A list of 6,000 pairs has 3,000 non-mated ones; what it cannot answer says so."""
LEVEL = 0.95


@dataclass(frozen=True)
class ListedPoint:
    """An operating point with the limits of its true and of its false accept rate at that very threshold.

    The threshold is found on the same pairs: how far it may be off is what the limits of the FAR tell. None where there
    is no answer, or fewer than two people are seen.
    """

    point: OperatingPoint
    tar_limits: tuple[float, float] | None = None
    far_limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class ListedVerification:
    """What was found on one list; `people` are counted as far as the pairs tell."""

    ten_fold: TenFold
    points: tuple[ListedPoint, ...]
    mated: int
    nonmated: int
    people: int

    def report(self) -> dict[str, Any]:
        """What schema `facelt.verification/1` holds of one set, but for its name."""
        folds = self.ten_fold
        return {
            "mated": self.mated,
            "nonmated": self.nonmated,
            "people": self.people,
            "accuracy": folds.mean,
            "accuracy_std": folds.std,
            "accuracy_folds": folds.accuracy_F.tolist(),
            "distance_folds": folds.threshold_F.tolist(),
            "points": [
                {
                    "wanted": one.point.wanted,
                    "tar": one.point.tar,
                    "tar_limits": one.tar_limits,
                    "far": one.point.fmr,
                    "far_limits": one.far_limits,
                    "score": one.point.threshold,
                    "false_matches": one.point.false_matches,
                    "supported": one.point.supported,
                    "reason": one.point.reason,
                }
                for one in self.points
            ],
        }


def verify_listed_pairs(
    embedding_UD: np.ndarray, left_P: np.ndarray, right_P: np.ndarray, same_P: np.ndarray, *, unit: bool
) -> ListedVerification:
    """Of pairs by positions among the embeddings of the different images.

    The score is the cosine for a `unit` kind, else the inner product; see `squared_distances`. Limits hold for people,
    not for pairs: pairs of one person are alike. Whose an image is nobody says, so people are what mated pairs join.

    Raises UserError: fewer than ten pairs, pairs of one person or of two people alone, an embedding that is not finite
    or, of a unit kind, has length 0.
    """
    if reason := why_unmeasurable(same_P):
        raise UserError(reason)
    distance_P = squared_distances(embedding_UD, left_P, right_P, unit=unit)
    if (wrong_P := np.isnan(distance_P)).any():
        raise UserError(f"of pair {int(np.argmax(wrong_P))} an embedding is not finite or has length 0")
    grid = ScoreGrid.reaching(max(1.0, float(np.abs(1 - distance_P / 2).max())), ScoreGrid.steps)
    # Of the grid, so that a pair is on the same side of a threshold wherever it is counted.
    score_P = np.rint((1 - distance_P / 2) / grid.resolution) * grid.resolution
    counts = ScoreHistograms(grid, grid.count(score_P[same_P]), grid.count(score_P[~same_P]))
    person_U = joined_people(len(embedding_UD), left_P[same_P], right_P[same_P])
    person_PE = np.stack([person_U[left_P], person_U[right_P]], axis=1)
    points = counts.points(LISTED_FARS)
    return ListedVerification(
        ten_fold(distance_P, same_P),
        _with_limits(points, score_P, same_P, person_PE),
        counts.mated,
        counts.nonmated,
        len(np.unique(person_PE)),
    )


def read_pair_embeddings(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings made elsewhere, [2P,D], those of a pair side by side, and the answers, bool [P].

    A .npy holds the embeddings alone, a .npz them as `embeddings` and the answers as `issame`. Raises UserError.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        is_archive = isinstance(loaded, np.lib.npyio.NpzFile)
        embedding_ND, same_P = (loaded["embeddings"], loaded["issame"]) if is_archive else (loaded, None)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; it needs the arrays `embeddings` and `issame`") from None
    except Exception as error:  # a damaged archive raises whatever its bytes lead to
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no .npy nor .npz file of plain arrays ({reason})") from None
    if embedding_ND.ndim != 2 or not embedding_ND.shape[1] or embedding_ND.dtype.kind != "f":
        found = f"{embedding_ND.dtype} {list(embedding_ND.shape)}"
        raise UserError(f"{path}: the embeddings are {found} where floats [2P,D] are expected")
    if same_P is not None and (same_P.ndim != 1 or not np.isin(same_P, (0, 1)).all()):
        found = f"{same_P.dtype} {list(same_P.shape)}"
        raise UserError(f"{path}: `issame` is {found} where truth values [P] are expected")
    return embedding_ND, None if same_P is None else same_P.astype(bool)


def joined_people(images: int, left_M: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    """The person of each image, int64 [U], where mated pairs say which images are one person's."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = coo_array((np.ones(len(left_M), dtype=bool), (left_M, right_M)), shape=(images, images))
    return connected_components(pairs, directed=False)[1].astype(np.int64)


def _with_limits(
    points: tuple[OperatingPoint, ...], score_P: np.ndarray, same_P: np.ndarray, person_PE: np.ndarray
) -> tuple[ListedPoint, ...]:
    known = [point for point in points if point.threshold is not None]
    if not known:
        return tuple(ListedPoint(point) for point in points)
    match_AP = score_P >= np.array([point.threshold for point in known])[:, None]
    missed = _intervals(~match_AP[:, same_P], person_PE[same_P])
    false = _intervals(match_AP[:, ~same_P], person_PE[~same_P])
    limits = {
        point.wanted: (_limits(1 - missed.high_F[a], 1 - missed.low_F[a]), _limits(false.low_F[a], false.high_F[a]))
        for a, point in enumerate(known)
    }
    return tuple(ListedPoint(point, *limits.get(point.wanted, ())) for point in points)


def _intervals(error_AP: np.ndarray, person_PE: np.ndarray) -> RateIntervals:
    """Limits of the share of errors among pairs, [A]; a pair is a trial of each person it shows."""
    people = int(person_PE.max()) + 1
    two_P = person_PE[:, 0] != person_PE[:, 1]
    ends = np.concatenate([person_PE[:, 0], person_PE[two_P, 1]])
    trial_I = np.bincount(ends, minlength=people).astype(np.float64)
    error_AI = np.stack(
        [np.bincount(ends, np.concatenate([error_P, error_P[two_P]]), minlength=people) for error_P in error_AP]
    )
    trial_A = np.full(len(error_AP), float(len(person_PE)))
    trial_AI = np.broadcast_to(trial_I, error_AI.shape)
    return rate_intervals(TouchedCounts(error_AP.sum(axis=1), trial_A, error_AI, trial_AI), level=LEVEL)


def _limits(low: float, high: float) -> tuple[float, float] | None:
    return None if np.isnan(low) else (float(low), float(high))
