"""Accuracy of verification by ten folds, as arcface_torch computes it (eval/verification.py).

U images, D feature, P pairs, F folds, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

# Squared distances of unit vectors lie between 0 and 4.
_THRESHOLDS = np.arange(0, 4, 0.01)
FOLDS = 10


@dataclass(frozen=True, eq=False)
class TenFoldAccuracy:
    """The share of pairs told rightly in each fold, and the threshold found for it on the other nine, float64 [F]."""

    accuracy_F: np.ndarray
    threshold_F: np.ndarray

    @property
    def mean(self) -> float:
        """The figure that papers print."""
        return float(np.mean(self.accuracy_F))

    @property
    def std(self) -> float:
        """Its spread over the folds, of a population, as they print it."""
        return float(np.std(self.accuracy_F))


def unmeasurable_reason(same_P: np.ndarray) -> str | None:
    """What keeps pairs with these answers from telling how well a model verifies; None where nothing does."""
    same_P = np.asarray(same_P, dtype=bool)
    if len(same_P) < FOLDS:
        return f"there are {len(same_P)} pairs, and {FOLDS} folds need as many"
    if same_P.all() or not same_P.any():
        # Any model is right about all of them, at one threshold or another.
        missing = "two people" if same_P.all() else "one person"
        return f"none of the {len(same_P):,} pairs is of {missing}, and accuracy needs pairs of both kinds"
    return None


def squared_distances(embedding_UD: np.ndarray, left_P: np.ndarray, right_P: np.ndarray, *, unit: bool) -> np.ndarray:
    """How far apart the images of each pair are, float64 [P]; the pairs are positions among the embeddings.

    Embeddings of a `unit` kind are brought to length 1 in float64, and the distance is |a - b|^2, as arcface_torch has
    it. Of others it is 2 - 2 a.b, the same for unit vectors: the inner product is what a search orders by. NaN where an
    embedding is not finite or, of a unit kind, has length 0.
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
    """Of pairs by their squared distance: one below the threshold is taken for the same person.

    Folds are contiguous and the first ones take what is left over, a pair each (scikit-learn's KFold without shuffling;
    files give pairs in the order of the published folds). Of thresholds that are equally good the smallest is taken.

    Raises ValueError: fewer than ten pairs, unequal lengths, or a distance that is not finite.
    """
    distance_P, same_P = np.asarray(distance_P, dtype=np.float64), np.asarray(same_P, dtype=bool)
    if distance_P.shape != same_P.shape or distance_P.ndim != 1:
        raise ValueError(f"distances are {list(distance_P.shape)} and answers {list(same_P.shape)}")
    if len(distance_P) < FOLDS:
        raise ValueError(f"{len(distance_P)} pairs are too few for {FOLDS} folds")
    if not np.isfinite(distance_P).all():
        raise ValueError("distances must be finite numbers")
    parts = zip(np.array_split(distance_P, FOLDS), np.array_split(same_P, FOLDS), strict=True)
    right_FT = np.stack([_right(*part) for part in parts])
    size_F = np.array([len(part) for part in np.array_split(same_P, FOLDS)])
    best_F = np.argmax(right_FT.sum(axis=0) - right_FT, axis=1)
    return TenFoldAccuracy(right_FT[np.arange(FOLDS), best_F] / size_F, _THRESHOLDS[best_F])


def _right(distance_P: np.ndarray, same_P: np.ndarray) -> np.ndarray:
    """How many pairs are told rightly at each threshold, int64 [T]."""
    below = [np.searchsorted(np.sort(distance_P[same_P == answer]), _THRESHOLDS) for answer in (True, False)]
    return below[0] + np.count_nonzero(~same_P) - below[1]
