"""True and predicted classes as the accuracy figures take them: checked once, in one place.

Shapes: N test images.

Closed-set accuracy by training shots: overall, many, medium and few.

Shapes: C classes, N test images.

F1 of each class.

Shapes: N test images, C classes.

How far a model's confidence is from how often it is right.

Shapes: N images.

What a labelled split is made of: images, classes, and how both spread over the bands of training shots.

Shapes: C classes, N images of the split.

What averaging several experts wins and loses, image by image.

Shapes: K experts, N test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.errors import UserError

# The label of an image of no known class, and the prediction of a model that rejects an image.
OPEN_LABEL = -1


def _integer_vector(values: np.ndarray, name: str) -> np.ndarray:
    """`values` as an int64 vector; ValueError, naming it, where it is no vector or holds no integers."""
    vector = np.asarray(values)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a vector, not of shape {vector.shape}")
    if vector.size and not np.issubdtype(vector.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, not {vector.dtype}")
    return vector.astype(np.int64)


def validate_labels(
    label_N: np.ndarray, prediction_N: np.ndarray, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as int64 vectors of one length, each value from -1 to `classes` - 1.

    Raises:
        UserError: a value outside the range, with its position.
        ValueError: different lengths, no vector or no integers.
    """
    label_N = _integer_vector(label_N, "labels")
    prediction_N = _integer_vector(prediction_N, "predictions")
    if len(label_N) != len(prediction_N):
        raise ValueError(f"{len(label_N)} labels but {len(prediction_N)} predictions")
    for name, value_N in (("label", label_N), ("prediction", prediction_N)):
        outside_N = value_N < OPEN_LABEL
        if classes is not None:
            outside_N |= value_N >= classes
        if outside_N.any():
            first = int(np.argmax(outside_N))
            allowed = f"-1 to {classes - 1}" if classes is not None else "-1 and up"
            raise UserError(
                f"{name} {value_N[first]} of image {first} is outside {allowed}: check that the list and the model "
                "were made for the same classes"
            )
    return label_N, prediction_N


SHOT_BANDS = ("many", "medium", "few")

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
    """The band of each class as an index into `SHOT_BANDS`, shape [C].

    Args:
        train_counts_C: training images of each class, integers of at least 0.
        convention: `paper` (many > 100, few < 20) or `released` (many >= 100, few <= 20).

    Raises:
        ValueError: an unknown convention, or counts that are no vector of integers of at least 0.
    """
    if convention not in SHOT_CONVENTIONS:
        raise ValueError(f"unknown shot convention {convention!r}: choose one of {', '.join(SHOT_CONVENTIONS)}")
    count_C = _integer_vector(train_counts_C, "train_counts")
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
    images_C, right_C = per_class_counts(label_N, prediction_N, len(band_C))
    tested_C = images_C > 0
    accuracy, classes, images = {}, {}, {}
    for index, band in enumerate(SHOT_BANDS):
        member_C = tested_C & (band_C == index)
        classes[band] = int(member_C.sum())
        images[band] = int(images_C[member_C].sum())
        accuracy[band] = float(np.mean(right_C[member_C] / images_C[member_C])) if classes[band] else None
    overall = float(right_C.sum() / images_C.sum()) if images_C.any() else None
    return ShotAccuracy(overall=overall, **accuracy, classes=classes, images=images)


def per_class_counts(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class the images tested and those named rightly, int64 [C] each; open images (-1) are left out.

    Raises as `shot_accuracy` does.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N, classes=classes)
    label_K, prediction_K = (value_N[label_N != OPEN_LABEL] for value_N in (label_N, prediction_N))
    return (
        np.bincount(label_K, minlength=classes),
        np.bincount(label_K[label_K == prediction_K], minlength=classes),
    )


def class_f1(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> np.ndarray:
    """2 TP / (images of the class + images named as it), float [C + 1]; the last is the open set's, whose label is -1.

    NaN where a class was neither met nor named.

    Raises:
        UserError: a label or a prediction outside -1..C-1.
        ValueError: different lengths, no vector or no integers.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N, classes)
    label_N, prediction_N = (np.where(one_N == OPEN_LABEL, classes, one_N) for one_N in (label_N, prediction_N))
    right_N = label_N == prediction_N
    right, met, named = (np.bincount(one, minlength=classes + 1) for one in (label_N[right_N], label_N, prediction_N))
    with np.errstate(invalid="ignore"):
        return 2 * right / (met + named)


CALIBRATION_BINS = 15


def expected_calibration_error(
    confidence_N: np.ndarray, right_N: np.ndarray, bins: int = CALIBRATION_BINS
) -> float | None:
    """The mean over images of |accuracy - mean confidence| of the bin an image is in (Guo et al., ICML 2017, eq. 3).

    Bins are of equal width and hold their upper edge; a confidence of 0 is in the first.

    Args:
        confidence_N: the probability of the predicted class, 0 to 1.
        right_N: whether that class is the true one, bool.

    Returns:
        A fraction, None without an image.

    Raises:
        ValueError: different lengths, or a confidence outside 0 to 1.
    """
    confidence_N, right_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(right_N, dtype=bool)
    if confidence_N.shape != right_N.shape or confidence_N.ndim != 1:
        raise ValueError(f"confidences of shape {confidence_N.shape} for answers of shape {right_N.shape}")
    if not confidence_N.size:
        return None
    # Not within also where it is no number.
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError("confidences must be from 0 to 1")
    upper = np.linspace(0, 1, bins + 1)[1:]
    bin_N = np.searchsorted(upper, confidence_N, side="left")
    confidence, right = (np.bincount(bin_N, weights=value, minlength=bins) for value in (confidence_N, right_N))
    return float(np.abs(right - confidence).sum() / len(right_N))


def split_stats(train_counts_C: np.ndarray, label_N: np.ndarray) -> dict:
    """Counts of a split whose labels lie in -1..C-1, -1 the open set.

    `classes` are those with an image in the split, `largest` and `smallest` their images (None without a class). For
    each convention `shots` says how many classes and images of the split belong to each band, which a class's training
    images decide.
    """
    known_K = label_N[label_N != OPEN_LABEL]
    images_C = np.bincount(known_K, minlength=len(train_counts_C))
    present_C = images_C > 0
    shots = {}
    for convention in SHOT_CONVENTIONS:
        band_C = shot_bands(train_counts_C, convention)
        members = {band: present_C & (band_C == place) for place, band in enumerate(SHOT_BANDS)}
        shots[convention] = {
            band: {"classes": int(member_C.sum()), "images": int(images_C[member_C].sum())}
            for band, member_C in members.items()
        }
    return {
        "images": len(label_N),
        "open_images": len(label_N) - len(known_K),
        "classes": int(present_C.sum()),
        "largest": int(images_C.max()) if len(known_K) else None,
        "smallest": int(images_C[present_C].min()) if len(known_K) else None,
        "shots": shots,
    }


@dataclass(frozen=True)
class ExpertCounts:
    """Counts of known images. Of each expert in turn: those it gets right, those it gets right and the average wrong,
    and those the average gets right and it wrong.

    `some_right` are those the average gets wrong and one expert or more right, `none_right` those that it gets right
    and no expert does.
    """

    images: int
    average_right: int
    right: tuple[int, ...]
    lost: tuple[int, ...]
    won: tuple[int, ...]
    some_right: int
    none_right: int


def expert_counts(label_N: np.ndarray, expert_KN: Sequence[np.ndarray], average_N: np.ndarray) -> ExpertCounts:
    """Counts from true classes, each expert's predictions and those of their average; open images (-1) are left out.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: arrays of different lengths, no vectors or no integers.
    """
    label_N, average_N = validate_labels(label_N, average_N)
    known_N = label_N != OPEN_LABEL
    average_N = (average_N == label_N)[known_N]
    right_KN = np.array([(validate_labels(label_N, one_N)[1] == label_N)[known_N] for one_N in expert_KN])
    some_N = right_KN.any(axis=0)

    def count(right_KN: np.ndarray) -> tuple[int, ...]:
        return tuple(right_KN.sum(axis=1).tolist())

    return ExpertCounts(
        images=int(known_N.sum()),
        average_right=int(average_N.sum()),
        right=count(right_KN),
        lost=count(right_KN & ~average_N),
        won=count(~right_KN & average_N),
        some_right=int((some_N & ~average_N).sum()),
        none_right=int((average_N & ~some_N).sum()),
    )
