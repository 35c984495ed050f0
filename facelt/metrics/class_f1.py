"""F1 of each class.

Shapes: N test images, C classes.
"""

import numpy as np

from facelt.metrics.labels import OPEN_LABEL, checked_pair


def class_f1(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> np.ndarray:
    """2 TP / (images of the class + images named as it), float [C + 1]; the last is the open set's, whose label is -1.

    NaN where a class was neither met nor named.

    Raises:
        UserError: a label or a prediction outside -1..C-1.
        ValueError: different lengths, no vector or no integers.
    """
    label_N, prediction_N = checked_pair(label_N, prediction_N, classes)
    label_N, prediction_N = (np.where(one_N == OPEN_LABEL, classes, one_N) for one_N in (label_N, prediction_N))
    right_N = label_N == prediction_N
    right, met, named = (np.bincount(one, minlength=classes + 1) for one in (label_N[right_N], label_N, prediction_N))
    with np.errstate(invalid="ignore"):
        return 2 * right / (met + named)
