"""Ten-fold verification accuracy, as arcface_torch computes it (eval/verification.py).

U images, D feature, P pairs, F folds, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

# Squared distances of unit vectors lie between 0 and 4.
_THRESHOLDS = np.arange(0, 4, 0.01)
FOLDS = 10


@dataclass(frozen=True, eq=False)
class TenFoldAccuracy:
    """Accuracy of each fold at the threshold that is best on the other nine, float64 [F] each."""

    accuracy_F: np.ndarray
    threshold_F: np.ndarray

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds, the figure that papers print."""
        return float(np.mean(self.accuracy_F))

    @property
    def std(self) -> float:
        """Population standard deviation over the folds."""
        return float(np.std(self.accuracy_F))


def unmeasurable_reason(same_P: np.ndarray) -> str | None:
    """Returns the reason why ten-fold accuracy is undefined or meaningless on these labels; None if there is none."""
    same_P = np.asarray(same_P, dtype=bool)
    if len(same_P) < FOLDS:
        return f"there are {len(same_P)} pairs, fewer than the {FOLDS} folds"
    if same_P.all() or not same_P.any():
        # Some threshold is right about all of them, whatever the model.
        missing = "non-mated" if same_P.all() else "mated"
        return f"none of the {len(same_P):,} pairs is {missing}; accuracy needs mated and non-mated pairs"
    return None


def squared_distances(embedding_UD: np.ndarray, left_P: np.ndarray, right_P: np.ndarray, *, unit: bool) -> np.ndarray:
    """Returns the squared distance of the two embeddings of each pair, float64 [P]; pairs are row indices.

    Embeddings of a `unit` kind are normalised in float64 and the distance is |a - b|^2, as in arcface_torch. For other
    kinds it is 2 - 2 a.b, equal for unit vectors, because searches rank them by inner product. NaN if an embedding is
    not finite or, for a unit kind, has length 0.
    """
    row_UD = np.asarray(embedding_UD, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if not unit:
            distance_P = 2 - 2 * (row_UD[left_P] * row_UD[right_P]).sum(axis=1)
        else:
            row_UD = row_UD / np.linalg.norm(row_UD, axis=1)[:, None]
            distance_P = np.square(row_UD[left_P] - row_UD[right_P]).sum(axis=1)
    return np.where(np.isfinite(distance_P), distance_P, np.nan)


def ten_fold(distance_P: np.ndarray, same_P: np.ndarray) -> TenFoldAccuracy:
    """Returns ten-fold accuracy from squared distances; pairs below the threshold are predicted to be mated.

    Folds are contiguous and the first ones are one pair longer if P is not a multiple of ten (scikit-learn's KFold
    without shuffling; files list pairs in the order of the published folds). Of equally good thresholds the smallest
    is chosen.

    Raises ValueError: fewer than ten pairs, unequal lengths, or a distance that is not finite.
    """
    distance_P, same_P = np.asarray(distance_P, dtype=np.float64), np.asarray(same_P, dtype=bool)
    if distance_P.shape != same_P.shape or distance_P.ndim != 1:
        raise ValueError(f"distances of shape {list(distance_P.shape)} for labels of shape {list(same_P.shape)}")
    if len(distance_P) < FOLDS:
        raise ValueError(f"{len(distance_P)} pairs are too few for {FOLDS} folds")
    if not np.isfinite(distance_P).all():
        raise ValueError("distances must be finite numbers")
    folds = list(zip(np.array_split(distance_P, FOLDS), np.array_split(same_P, FOLDS), strict=True))
    correct_FT = np.stack([_correct_counts(*fold) for fold in folds])
    size_F = np.array([len(same_B) for _, same_B in folds])
    best_F = np.argmax(correct_FT.sum(axis=0) - correct_FT, axis=1)
    return TenFoldAccuracy(correct_FT[np.arange(FOLDS), best_F] / size_F, _THRESHOLDS[best_F])


def _correct_counts(distance_B: np.ndarray, same_B: np.ndarray) -> np.ndarray:
    """Returns the number of correctly predicted pairs of a fold at each threshold, int64 [T]."""
    below = [np.searchsorted(np.sort(distance_B[same_B == label]), _THRESHOLDS) for label in (True, False)]
    return below[0] + np.count_nonzero(~same_B) - below[1]
