"""Closed-set accuracy by training shots: overall, many, medium and few.

Shapes: C classes, N test images.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.metrics.labels import OPEN_LABEL, checked_pair, integer_vector

BANDS = ("many", "medium", "few")

# Smallest count of a many-shot class, largest count of a few-shot class. The OLTR paper says 'more than 100' and
# 'fewer than 20'; its released code counts classes with exactly 100 and exactly 20 images in as well.
SHOT_CONVENTIONS = MappingProxyType({"paper": (101, 19), "released": (100, 20)})


@dataclass(frozen=True)
class ShotAccuracy:
    """Accuracies as fractions; None where no known image was tested. Counts are of what was tested, by band."""

    overall: float | None
    many: float | None
    medium: float | None
    few: float | None
    classes: dict[str, int]
    images: dict[str, int]


def shot_bands(train_counts_C: np.ndarray, convention: str) -> np.ndarray:
    """The band of each class as an index into `BANDS`, shape [C].

    Args:
        train_counts_C: training images of each class, integers of at least 0.
        convention: `paper` (many > 100, few < 20) or `released` (many >= 100, few <= 20).

    Raises:
        ValueError: an unknown convention, or counts that are no vector of integers of at least 0.
    """
    if convention not in SHOT_CONVENTIONS:
        raise ValueError(f"unknown shot convention {convention!r}: choose one of {', '.join(SHOT_CONVENTIONS)}")
    count_C = integer_vector(train_counts_C, "train_counts")
    if count_C.size and count_C.min() < 0:
        raise ValueError(f"train_counts holds a negative count ({count_C.min()})")
    many_from, few_to = SHOT_CONVENTIONS[convention]
    return np.where(count_C >= many_from, 0, np.where(count_C <= few_to, 2, 1))


def shot_accuracy(
    train_counts_C: np.ndarray, label_N: np.ndarray, prediction_N: np.ndarray, convention: str
) -> ShotAccuracy:
    """Top-1 accuracy over known images, overall and by shot band (Liu et al., CVPR 2019, section 4).

    `overall` is the fraction of images that are right; a band's figure is the mean of its classes' accuracies, each
    class counting once. Images labelled -1 (open) are left out; a known image predicted as -1 is wrong. Classes
    without a test image have no accuracy and count nowhere.

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
    images_C, right_C = class_counts(label_N, prediction_N, len(band_C))
    tested_C = images_C > 0
    accuracy, classes, images = {}, {}, {}
    for index, band in enumerate(BANDS):
        member_C = tested_C & (band_C == index)
        classes[band] = int(member_C.sum())
        images[band] = int(images_C[member_C].sum())
        accuracy[band] = float(np.mean(right_C[member_C] / images_C[member_C])) if classes[band] else None
    overall = float(right_C.sum() / images_C.sum()) if images_C.any() else None
    return ShotAccuracy(overall=overall, **accuracy, classes=classes, images=images)


def class_counts(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class the images tested and those named rightly, int64 [C] each; open images (-1) are left out.

    Raises as `shot_accuracy` does.
    """
    label_N, prediction_N = checked_pair(label_N, prediction_N, classes=classes)
    label_K, prediction_K = (value_N[label_N != OPEN_LABEL] for value_N in (label_N, prediction_N))
    return (
        np.bincount(label_K, minlength=classes),
        np.bincount(label_K[label_K == prediction_K], minlength=classes),
    )
