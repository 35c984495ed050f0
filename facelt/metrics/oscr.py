"""Open-set classification rate: known images named rightly against open images accepted (Dhamija et al., NeurIPS 2018).

Shapes: K images of known classes, O open ones, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

from facelt.metrics.detection import accepted_counts


@dataclass(frozen=True, eq=False)
class OscrCurve:
    """float64 [T] each, as the threshold falls from above every score: the share of open images accepted, and of known
    images accepted and named rightly. The area below the curve is the chance that a known image is named rightly and
    scores higher than an open one, a tie counting half; the curve ends at (1, closed-set accuracy).
    """

    fpr_T: np.ndarray
    rate_T: np.ndarray
    area: float


def oscr(score_K: np.ndarray, right_K: np.ndarray, score_O: np.ndarray) -> OscrCurve | None:
    """The curve for known images with their scores and whether they are named rightly (bool), and open images' scores.

    None where there is no known or no open image. Raises ValueError where a score is not finite.
    """
    score_K, right_K = np.asarray(score_K), np.asarray(right_K, dtype=bool)
    if not len(score_K) or not len(score_O):
        return None
    # Known images named wrongly set no threshold: neither rate changes with them.
    right_T, alarms_T = accepted_counts(score_K[right_K], score_O)
    fpr_T, rate_T = alarms_T / len(score_O), right_T / len(score_K)
    return OscrCurve(fpr_T, rate_T, float(np.trapezoid(rate_T, fpr_T)))
