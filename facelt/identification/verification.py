"""Verification: every probe-mate pair against every probe-distractor pair, in one streamed pass.

P probes, G distractors, D feature, B rows of a block or bins of a histogram.

Verification on a list of pairs: 10-fold accuracy, and TAR at FAR with the limits of both.

U images, D feature, P pairs, I people, A false accept rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification.all_pairs import longest, scored_blocks, scored_rows
from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreGrid, ScoreHistograms
from facelt.identification.rank import MatePairs, mate_pairs
from facelt.metrics.ten_fold import TenFoldAccuracy, squared_distances, ten_fold, unmeasurable_reason
from facelt.search.exact import MatrixLike, check_dimensions
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals
from recordio_tools.progress import ProgressFn, no_progress

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

# Scores held at once. A histogram of half a million bins is added once for so many.
SCORES = 1 << 23
STEPS = 1 << 18


@dataclass(frozen=True, eq=False)
class Verification:
    """What one pass found. `histograms` answer for any other FAR; `histograms.smallest_fmr` is what pairs support."""

    histograms: ScoreHistograms
    points: tuple[OperatingPoint, ...]
    det: DetCurve


def verification_rates(
    probe_PD: np.ndarray,
    identity_P: np.ndarray,
    distractor_GD: MatrixLike,
    *,
    fars: Sequence[float] = FARS,
    cosine: bool = False,
    progress: ProgressFn = no_progress,
) -> Verification:
    """TAR at each FAR, and the DET curve, of all pairs of two probes of one identity against all P x G pairs.

    Each mated pair counts once, whichever image is the probe: the score is the same both ways. Scores are inner
    products or cosines; non-mated ones are float32 products, mated ones float64, both rounded to 2^-18 of the largest
    score there can be (1 for cosines, else the next power of two above the product of the largest lengths). Rates are
    counted at the thresholds named, none is interpolated; a threshold is off by the grid's resolution at most, beside
    the rounding of a float32 product. Memory is some 100 MB beside the probes, whatever G is: the P x G scores never
    exist at once.

    For inner products the distractors are read twice, first for their lengths. Raises BadRow on a row that is not
    finite or, for cosines, has length zero; UserError on unequal dimensions; ValueError on a FAR outside (0, 1].
    """
    check_dimensions(probe_PD, distractor_GD)
    if wrong := [far for far in fars if not 0 < far <= 1]:
        raise ValueError(f"a FAR of {wrong[0]} is asked for; it must be above 0 and at most 1")
    query_PD = scored_rows(probe_PD, "query", cosine=cosine)
    grid = ScoreGrid.reaching(1.0 if cosine else _largest(query_PD, distractor_GD), STEPS)
    pairs = mate_pairs(identity_P)
    once = pairs.mate_M < pairs.probe_M
    pairs = MatePairs(pairs.mate_M[once], pairs.probe_M[once])
    mated_B = grid.count(pairs.scores(np.asarray(probe_PD, dtype=np.float32), cosine=cosine))
    nonmated_B = _count_nonmated(query_PD, distractor_GD, grid, cosine, progress)
    histograms = ScoreHistograms(grid, mated_B, nonmated_B)
    return Verification(histograms, histograms.points(tuple(fars)), histograms.det())


def _count_nonmated(
    query_PD: np.ndarray, rows_GD: MatrixLike, grid: ScoreGrid, cosine: bool, progress: ProgressFn
) -> np.ndarray:
    count_B = np.zeros(grid.bins, dtype=np.int64)
    rows = max(1, SCORES // max(1, len(query_PD)))
    # Reused: fresh memory for each block costs as much as filling it.
    score_BP = np.empty((rows, len(query_PD)), dtype=np.float32)
    done = 0
    for block_BD in scored_blocks(rows_GD, rows, cosine=cosine):
        count_B += grid.count(np.matmul(block_BD, query_PD.T, out=score_BP[: len(block_BD)]))
        done += len(block_BD)
        progress("comparing non-mated pairs", done, rows_GD.shape[0])
    return count_B


def _largest(query_PD: np.ndarray, rows_GD: MatrixLike) -> float:
    """A bound of all inner products, of mates as well: the longest probe times the longest row."""
    length = longest(query_PD)
    blocks = scored_blocks(rows_GD, SCORES, cosine=False)
    return length * max([length, *(longest(block_BD) for block_BD in blocks)])


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

    ten_fold: TenFoldAccuracy
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
    if reason := unmeasurable_reason(same_P):
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
    return rate_intervals(ClusteredCounts(error_AP.sum(axis=1), trial_A, error_AI, trial_AI), level=LEVEL)


def _limits(low: float, high: float) -> tuple[float, float] | None:
    return None if np.isnan(low) else (float(low), float(high))
