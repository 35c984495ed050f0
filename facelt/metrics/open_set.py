"""F-measures for known classes with open images mixed in.

Shapes: N test images.
"""

import numpy as np

from facelt.metrics.labels import OPEN_LABEL, checked_pair

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
    label_N, prediction_N = checked_pair(label_N, prediction_N)
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
    label_N, prediction_N = checked_pair(label_N, prediction_N)
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
    label_N, prediction_N = checked_pair(label_N, prediction_N)
    return _macro_f(label_N, prediction_N) if (label_N == OPEN_LABEL).any() else None


def _macro_f(label_N: np.ndarray, prediction_N: np.ndarray) -> float:
    _, code = np.unique(np.concatenate([label_N, prediction_N]), return_inverse=True)
    label_code_N, prediction_code_N = code[: len(label_N)], code[len(label_N) :]
    classes = int(code.max()) + 1
    right = np.bincount(label_code_N[label_code_N == prediction_code_N], minlength=classes)
    met = np.bincount(label_code_N, minlength=classes) + np.bincount(prediction_code_N, minlength=classes)
    return float(np.mean(2 * right / met))
