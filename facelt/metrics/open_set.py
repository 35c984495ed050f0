"""F-measures for known classes with open images mixed in.

Shapes: N test images.

Telling images of known classes from open ones by a score that is higher for known ones.

Known images are the positive ones throughout, but for `aupr_open_positive`. An image is accepted where its score is at
or above the threshold; images of equal score are accepted together, so that no order among them counts.

Shapes: N images, K of known classes, O open ones, T thresholds.

Open-set classification rate: known images named rightly against open images accepted (Dhamija et al., NeurIPS 2018).

Shapes: K images of known classes, O open ones, T thresholds.

What becomes of images, by the band of their class: named rightly, as another class of some band, or rejected.

It shows where the tail and the open world are taken for each other: rare classes rejected as unknown, open images named
as rare classes.

Shapes: N images, C classes.
"""

from dataclasses import dataclass

import numpy as np

from facelt.metrics.classification import OPEN_LABEL, SHOT_BANDS, shot_bands, validate_labels

# Whether a known image that the model rejects is a false positive: not in the form behind the paper's figures, which
# therefore rise with the rejection threshold; it is in the form of the released code.
F_MEASURE_FORMS = ("paper", "released")

# The released code guards its division with this; kept, so that figures agree to the last bit.
_TINY = 1e-12


def open_set_f_measure(label_N: np.ndarray, prediction_N: np.ndarray, form: str) -> float | None:
    """The open-set F-measure of OLTR (Liu et al., CVPR 2019), in the paper's or the released code's form.

    A true positive is a known image named rightly; a false positive a known image named wrongly, in the form
    `released` also when it is rejected; a false negative an open image that is not rejected. The measure is
    2 P R / (P + R) with P = TP / (TP + FP) and R = TP / (TP + FN).

    Args:
        label_N: true classes, -1 for an open image.
        prediction_N: predicted classes, -1 for a rejection.
        form: `paper` or `released`.

    Returns:
        A fraction; 0 when nothing is named rightly, None without any known image.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, no vector, no integers, or an unknown form.
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
    right = int((known_N & (prediction_N == label_N)).sum())
    missed = int((~known_N & (prediction_N != OPEN_LABEL)).sum())
    if right == 0:
        return 0.0
    precision = right / (right + int(wrong_N.sum()))
    recall = right / (right + missed)
    return 2 * (precision * recall / (precision + recall + _TINY))


def closed_macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float | None:
    """The mean F1 of the classes met among known images, as true or as predicted class.

    Images labelled -1 are left out; -1 among the predictions left counts as one more class, whose F1 is 0.

    Returns:
        A fraction, or None without any known image.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, no vector or no integers.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N)
    known_N = label_N != OPEN_LABEL
    if not known_N.any():
        return None
    return _macro_f(label_N[known_N], prediction_N[known_N])


def open_macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float | None:
    """The mean F1 of the classes met among all images, as true or as predicted class, the unknown being one of them.

    The unknown class is the true one of open images (-1) and the predicted one of rejected images.

    Returns:
        A fraction, or None without any open image: then there is no unknown class to find.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, no vector or no integers.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N)
    return _macro_f(label_N, prediction_N) if (label_N == OPEN_LABEL).any() else None


def _macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float:
    _, code = np.unique(np.concatenate([label_N, prediction_N]), return_inverse=True)
    label_code_N, prediction_code_N = code[: len(label_N)], code[len(label_N) :]
    classes = int(code.max()) + 1
    right = np.bincount(label_code_N[label_code_N == prediction_code_N], minlength=classes)
    met = np.bincount(label_code_N, minlength=classes) + np.bincount(prediction_code_N, minlength=classes)
    return float(np.mean(2 * right / met))


# Known images that are to be accepted, in percent.
TPR_PERCENT = 95


@dataclass(frozen=True)
class DetectionMetrics:
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


def detection_metrics(score_K: np.ndarray, score_O: np.ndarray) -> DetectionMetrics:
    """How well scores tell `score_K`, of known images, from `score_O`. Raises ValueError where one is not finite."""
    accepted_T, alarms_T = accepted_counts(score_K, score_O)
    known, open_images = len(score_K), len(score_O)
    if not known or not open_images:
        return DetectionMetrics(reason=f"there are {known:,} known and {open_images:,} open images")
    tpr_T, fpr_T = accepted_T / known, alarms_T / open_images
    error_T = 0.5 * (1 - tpr_T) + 0.5 * fpr_T
    wanted = int(np.argmax(100 * accepted_T >= TPR_PERCENT * known))
    return DetectionMetrics(
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


def threshold_at_tpr(score_K: np.ndarray) -> float | None:
    """The highest threshold that accepts 95 % of the images with these scores; None without any."""
    needed = -(-TPR_PERCENT * len(score_K) // 100)
    return float(np.partition(score_K, len(score_K) - needed)[len(score_K) - needed]) if needed else None


def _average_precision(right_T: np.ndarray, wrong_T: np.ndarray) -> float:
    """The mean over right ones of the precision at the threshold that first accepts them."""
    accepted_T = right_T + wrong_T
    return float(np.sum(np.diff(right_T) * right_T[1:] / accepted_T[1:]) / right_T[-1])


@dataclass(frozen=True, eq=False)
class OscrCurve:
    """float64 [T] each, as the threshold falls from above every score: the share of open images accepted, and of known
    images accepted and named rightly. The area below the curve is the chance that a known image is named rightly and
    scores higher than an open one, a tie counting half; the curve ends at (1, closed-set accuracy).
    """

    fpr_T: np.ndarray
    rate_T: np.ndarray
    area: float


def oscr_curve(score_K: np.ndarray, right_K: np.ndarray, score_O: np.ndarray) -> OscrCurve | None:
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


CONFUSION_ROWS = (*SHOT_BANDS, "open")
CONFUSION_COLUMNS = ("right", *SHOT_BANDS, "rejected")


def open_confusion(
    train_counts_C: np.ndarray, label_N: np.ndarray, prediction_N: np.ndarray, convention: str
) -> np.ndarray:
    """Images by where they belong (rows, `TRUE`) and what they are answered with (columns, `ANSWERS`), int64 [4, 5].

    `many`, `medium` and `few` among the answers are wrong names by the band of the class named. An open image has no
    right name: its zero there stays.

    Args:
        train_counts_C: training images of each class.
        label_N: true classes, -1 for an open image.
        prediction_N: predicted classes, -1 for a rejection.
        convention: `paper` or `released`, see `shot_bands`.

    Raises:
        UserError: a label or a prediction outside -1..C-1.
        ValueError: arrays of different lengths, no vector, no integers, or an unknown convention.
    """
    band_C = shot_bands(train_counts_C, convention)
    label_N, prediction_N = validate_labels(label_N, prediction_N, classes=len(band_C))
    # One place more, which -1 leads to.
    row_N = np.append(band_C, CONFUSION_ROWS.index("open"))[label_N]
    answer_N = np.append(band_C + CONFUSION_COLUMNS.index(SHOT_BANDS[0]), CONFUSION_COLUMNS.index("rejected"))[
        prediction_N
    ]
    answer_N[(label_N != OPEN_LABEL) & (label_N == prediction_N)] = CONFUSION_COLUMNS.index("right")
    counts = np.bincount(
        row_N * len(CONFUSION_COLUMNS) + answer_N, minlength=len(CONFUSION_ROWS) * len(CONFUSION_COLUMNS)
    )
    return counts.reshape(len(CONFUSION_ROWS), len(CONFUSION_COLUMNS))
