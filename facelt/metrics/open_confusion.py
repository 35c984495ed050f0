"""What becomes of images, by the band of their class: named rightly, as another class of some band, or rejected.

It shows where the tail and the open world are taken for each other: rare classes rejected as unknown, open images named
as rare classes.

Shapes: N images, C classes.
"""

import numpy as np

from facelt.metrics.accuracy import BANDS, shot_bands
from facelt.metrics.labels import OPEN_LABEL, checked_pair

TRUE = (*BANDS, "open")
ANSWERS = ("right", *BANDS, "rejected")


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
    label_N, prediction_N = checked_pair(label_N, prediction_N, classes=len(band_C))
    # One place more, which -1 leads to.
    row_N = np.append(band_C, TRUE.index("open"))[label_N]
    answer_N = np.append(band_C + ANSWERS.index(BANDS[0]), ANSWERS.index("rejected"))[prediction_N]
    answer_N[(label_N != OPEN_LABEL) & (label_N == prediction_N)] = ANSWERS.index("right")
    counts = np.bincount(row_N * len(ANSWERS) + answer_N, minlength=len(TRUE) * len(ANSWERS))
    return counts.reshape(len(TRUE), len(ANSWERS))
