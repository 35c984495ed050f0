"""Open-set classification metrics: F-measures, detection of unknown images, OSCR, confusion by shot band.

An image of an unknown ("open") class has label -1; a prediction of -1 is a rejection. Detection scores are higher for
known images, which are the positive class unless stated otherwise. An image is accepted if its score is at or above
the threshold; images with equal scores are accepted together.

N images, K known images, O open images, C classes, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

from facelt.metrics.classification import OPEN_LABEL, SHOT_BANDS, shot_bands, validate_labels

# The forms differ in rejected known images: no false positives in the form behind the paper's figures, which therefore
# rise with the rejection threshold; false positives in the released code.
F_MEASURE_FORMS = ("paper", "released")

# The released code adds this to the denominator; kept so that figures agree to the last bit.
_EPSILON = 1e-12


def open_set_f_measure(label_N: np.ndarray, prediction_N: np.ndarray, form: str) -> float | None:
    """Returns the open-set F-measure of OLTR (Liu et al., CVPR 2019) in the paper's or the released code's form.

    A true positive is a correctly classified known image; a false positive a misclassified known image, in the form
    `released` also a rejected one; a false negative an open image that is not rejected. The measure is
    2 P R / (P + R) with P = TP / (TP + FP) and R = TP / (TP + FN).

    Args:
        label_N: true classes, -1 for an open image.
        prediction_N: predicted classes, -1 for a rejection.
        form: `paper` or `released`.

    Returns:
        A fraction; 0 without any true positive, None without any known image.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, not vectors of integers, or an unknown form.
    """
    if form not in F_MEASURE_FORMS:
        raise ValueError(f"unknown F-measure form {form!r}: choose one of {', '.join(F_MEASURE_FORMS)}")
    label_N, prediction_N = validate_labels(label_N, prediction_N)
    known_N = label_N != OPEN_LABEL
    if not known_N.any():
        return None
    wrong_N = known_N & (prediction_N != label_N)
    if form == "paper":
        wrong_N &= prediction_N != OPEN_LABEL
    true_positives = int((known_N & (prediction_N == label_N)).sum())
    false_negatives = int((~known_N & (prediction_N != OPEN_LABEL)).sum())
    if true_positives == 0:
        return 0.0
    precision = true_positives / (true_positives + int(wrong_N.sum()))
    recall = true_positives / (true_positives + false_negatives)
    return 2 * (precision * recall / (precision + recall + _EPSILON))


def closed_macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float | None:
    """Returns the mean F1 over the classes that occur, as true or as predicted class, among known images.

    Open images are left out; -1 among the remaining predictions counts as one more class, whose F1 is 0.

    Returns:
        A fraction, or None without any known image.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, or not vectors of integers.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N)
    known_N = label_N != OPEN_LABEL
    return _macro_f1(label_N[known_N], prediction_N[known_N]) if known_N.any() else None


def open_macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float | None:
    """Returns the mean F1 over the classes that occur, as true or as predicted class, including the unknown class.

    The unknown class is the true class of open images and the predicted class of rejected images.

    Returns:
        A fraction, or None without any open image.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, or not vectors of integers.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N)
    return _macro_f1(label_N, prediction_N) if (label_N == OPEN_LABEL).any() else None


def _macro_f1(label_N: np.ndarray, prediction_N: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(label_N, prediction_N, average="macro", zero_division=0))


# True positive rate in percent at which FPR and detection error are reported.
TPR_PERCENT = 95


@dataclass(frozen=True)
class DetectionMetrics:
    """Known-against-open detection metrics as fractions; all None, with a `reason`, if either side has no image.

    `auroc` is the probability that a known image scores higher than an open one, ties counting half.
    `aupr_known_positive` and `aupr_open_positive` are average precisions (AUPR in, AUPR out). At the highest threshold
    that accepts 95 % of the known images: the FPR, and the detection error 0.5 (1 - TPR) + 0.5 FPR of OLTR's Table 2
    and of ODIN's paper. `detection_error_minimum` is the smallest detection error over all thresholds, which ODIN's
    released code prints.
    """

    auroc: float | None = None
    aupr_known_positive: float | None = None
    aupr_open_positive: float | None = None
    fpr_at_95_tpr: float | None = None
    detection_error_at_95_tpr: float | None = None
    detection_error_minimum: float | None = None
    reason: str | None = None


def detection_metrics(score_K: np.ndarray, score_O: np.ndarray) -> DetectionMetrics:
    """Returns detection metrics of the scores of known and of open images. Raises ValueError if one is not finite."""
    from sklearn.metrics import auc, average_precision_score, roc_curve

    score_N = _finite_scores(score_K, score_O)
    if not len(score_K) or not len(score_O):
        return DetectionMetrics(reason=f"there are {len(score_K):,} known and {len(score_O):,} open images")
    known_N = np.arange(len(score_N)) < len(score_K)
    fpr_T, tpr_T, _ = roc_curve(known_N, score_N, drop_intermediate=False)
    error_T = 0.5 * (1 - tpr_T) + 0.5 * fpr_T
    at_tpr = int(np.argmax(tpr_T >= TPR_PERCENT / 100))
    return DetectionMetrics(
        auroc=float(auc(fpr_T, tpr_T)),
        aupr_known_positive=float(average_precision_score(known_N, score_N)),
        aupr_open_positive=float(average_precision_score(~known_N, -score_N)),
        fpr_at_95_tpr=float(fpr_T[at_tpr]),
        detection_error_at_95_tpr=float(error_T[at_tpr]),
        detection_error_minimum=float(error_T.min()),
    )


def threshold_at_tpr(score_K: np.ndarray) -> float | None:
    """Returns the highest threshold that accepts 95 % of the known images with these scores; None without any."""
    needed = -(-TPR_PERCENT * len(score_K) // 100)
    return float(np.partition(score_K, len(score_K) - needed)[len(score_K) - needed]) if needed else None


@dataclass(frozen=True, eq=False)
class OscrCurve:
    """Open-set classification rate curve (Dhamija et al., NeurIPS 2018), float64 [T] each, from high to low thresholds.

    `fpr_T` is the fraction of open images accepted, `rate_T` that of known images accepted and correctly classified.
    The area under the curve is the probability that a known image is correctly classified and scores higher than an
    open one, ties counting half; the curve ends at (1, closed-set accuracy).
    """

    fpr_T: np.ndarray
    rate_T: np.ndarray
    area: float


def oscr_curve(score_K: np.ndarray, right_K: np.ndarray, score_O: np.ndarray) -> OscrCurve | None:
    """Returns the OSCR curve from scores and correctness (bool) of known images and scores of open images.

    None without any known or any open image. Raises ValueError if a score is not finite.
    """
    score_K, right_K, score_O = np.asarray(score_K), np.asarray(right_K, dtype=bool), np.asarray(score_O)
    if not len(score_K) or not len(score_O):
        return None
    # Misclassified known images change neither rate, so they add no threshold.
    score_N = _finite_scores(score_K[right_K], score_O)
    threshold_T = np.concatenate([[np.inf], np.unique(score_N)[::-1]])
    accepted = [
        len(score_M) - np.searchsorted(np.sort(score_M), threshold_T) for score_M in (score_O, score_K[right_K])
    ]
    fpr_T, rate_T = accepted[0] / len(score_O), accepted[1] / len(score_K)
    return OscrCurve(fpr_T, rate_T, float(np.trapezoid(rate_T, fpr_T)))


def _finite_scores(score_K: np.ndarray, score_O: np.ndarray) -> np.ndarray:
    score_N = np.concatenate([score_K, score_O])
    if not np.isfinite(score_N).all():
        raise ValueError("scores must be finite numbers")
    return score_N


CONFUSION_ROWS = (*SHOT_BANDS, "open")
CONFUSION_COLUMNS = ("right", *SHOT_BANDS, "rejected")


def open_confusion(
    train_counts_C: np.ndarray, label_N: np.ndarray, prediction_N: np.ndarray, convention: str
) -> np.ndarray:
    """Returns image counts by true shot band and outcome, int64 [4, 5]: `CONFUSION_ROWS` by `CONFUSION_COLUMNS`.

    It shows confusions between tail classes and unknown images. The columns `many`, `medium` and `few` are
    misclassifications, by the band of the predicted class. An open image cannot be right: that cell is 0.

    Args:
        train_counts_C: training images of each class.
        label_N: true classes, -1 for an open image.
        prediction_N: predicted classes, -1 for a rejection.
        convention: `paper` or `released`, see `shot_bands`.

    Raises:
        UserError: a label or a prediction outside -1..C-1.
        ValueError: different lengths, not vectors of integers, or an unknown convention.
    """
    band_C = shot_bands(train_counts_C, convention)
    label_N, prediction_N = validate_labels(label_N, prediction_N, classes=len(band_C))
    # One more entry, which index -1 selects.
    row_N = np.append(band_C, CONFUSION_ROWS.index("open"))[label_N]
    column_C = band_C + CONFUSION_COLUMNS.index(SHOT_BANDS[0])
    column_N = np.append(column_C, CONFUSION_COLUMNS.index("rejected"))[prediction_N]
    column_N[(label_N != OPEN_LABEL) & (label_N == prediction_N)] = CONFUSION_COLUMNS.index("right")
    rows, columns = len(CONFUSION_ROWS), len(CONFUSION_COLUMNS)
    return np.bincount(row_N * columns + column_N, minlength=rows * columns).reshape(rows, columns)
