"""Telling images of known classes from open ones by a score that is higher for known ones.

Known images are the positive ones throughout, but for `aupr_open_positive`. An image is accepted where its score is at
or above the threshold; images of equal score are accepted together, so that no order among them counts.

Shapes: N images, K of known classes, O open ones, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

# Known images that are to be accepted, in percent.
WANTED = 95


@dataclass(frozen=True)
class Detection:
    """Fractions; without an answer they are None and `reason` says why.

    `auroc` is the chance that a known image scores higher than an open one, a tie counting half. `aupr_known_positive`
    and `aupr_open_positive` are average precisions (AUPR in, AUPR out). The next two are at the highest threshold that
    accepts 95 % of the known images: the share of open images accepted, and 0.5 (1 - TPR) + 0.5 FPR, the error of
    OLTR's Table 2 and of ODIN's paper. `detection_error_minimum` is the smallest such error of any threshold, which is
    what ODIN's released code prints.
    """

    auroc: float | None = None
    aupr_known_positive: float | None = None
    aupr_open_positive: float | None = None
    fpr_at_95_tpr: float | None = None
    detection_error_at_95_tpr: float | None = None
    detection_error_minimum: float | None = None
    reason: str | None = None


def detection(score_K: np.ndarray, score_O: np.ndarray) -> Detection:
    """How well scores tell `score_K`, of known images, from `score_O`. Raises ValueError where one is not finite."""
    accepted_T, alarms_T = accepted_counts(score_K, score_O)
    known, open_images = len(score_K), len(score_O)
    if not known or not open_images:
        return Detection(reason=f"there are {known:,} known and {open_images:,} open images")
    tpr_T, fpr_T = accepted_T / known, alarms_T / open_images
    error_T = 0.5 * (1 - tpr_T) + 0.5 * fpr_T
    wanted = int(np.argmax(100 * accepted_T >= WANTED * known))
    return Detection(
        auroc=float(np.trapezoid(tpr_T, fpr_T)),
        aupr_known_positive=_average_precision(accepted_T, alarms_T),
        # What is rejected, from the lowest threshold up.
        aupr_open_positive=_average_precision((open_images - alarms_T)[::-1], (known - accepted_T)[::-1]),
        fpr_at_95_tpr=float(fpr_T[wanted]),
        detection_error_at_95_tpr=float(error_T[wanted]),
        detection_error_minimum=float(error_T.min()),
    )


def accepted_counts(score_K: np.ndarray, score_O: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of each are accepted as the threshold falls: int64 [T] each, from none to all.

    T is the number of different scores and one more. Raises ValueError where a score is not finite.
    """
    score_N = np.concatenate([score_K, score_O])
    if not np.isfinite(score_N).all():
        raise ValueError("scores must be finite numbers")
    order_N = np.argsort(-score_N, kind="stable")
    known_N = np.cumsum(order_N < len(score_K))
    # The last image of each group of equal scores.
    last_T = np.flatnonzero(np.diff(score_N[order_N], append=np.nan) != 0)
    accepted_T = np.concatenate([[0], known_N[last_T]])
    return accepted_T, np.concatenate([[0], last_T + 1]) - accepted_T


def accepting_threshold(score_K: np.ndarray) -> float | None:
    """The highest threshold that accepts 95 % of the images with these scores; None without any."""
    needed = -(-WANTED * len(score_K) // 100)
    return float(np.partition(score_K, len(score_K) - needed)[len(score_K) - needed]) if needed else None


def _average_precision(right_T: np.ndarray, wrong_T: np.ndarray) -> float:
    """The mean over right ones of the precision at the threshold that first accepts them."""
    accepted_T = right_T + wrong_T
    return float(np.sum(np.diff(right_T) * right_T[1:] / accepted_T[1:]) / right_T[-1])
