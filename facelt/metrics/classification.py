"""Closed-set classification metrics: shot bands, accuracy by band, F1, calibration, split and ensemble statistics.

N images, C classes, K experts. Label -1 marks an image of an unknown ("open") class, prediction -1 a rejection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from facelt.errors import UserError

# Label of an image of an unknown class, and the prediction for a rejected image.
OPEN_LABEL = -1


def validate_labels(
    label_N: np.ndarray, prediction_N: np.ndarray, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and predictions as int64 vectors of equal length with values from -1 to `classes` - 1.

    Raises:
        UserError: a value outside the range; the message gives its position.
        ValueError: different lengths, or not vectors of integers.
    """
    label_N, prediction_N = _integer_vector(label_N, "labels"), _integer_vector(prediction_N, "predictions")
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
                "have the same classes"
            )
    return label_N, prediction_N


def _integer_vector(values: np.ndarray, name: str) -> np.ndarray:
    vector = np.asarray(values)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a vector, not of shape {vector.shape}")
    if vector.size and not np.issubdtype(vector.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {vector.dtype}")
    return vector.astype(np.int64)


ShotBand = Literal["many", "medium", "few"]
SHOT_BANDS = get_args(ShotBand)

# Smallest count of a many-shot class, largest count of a few-shot class. The OLTR paper says 'more than 100' and
# 'fewer than 20'; its released code includes classes with exactly 100 and exactly 20 images.
SHOT_CONVENTIONS = MappingProxyType({"paper": (101, 19), "released": (100, 20)})


@dataclass(frozen=True)
class ShotAccuracy:
    """Accuracies as fractions, None without a tested image; numbers of tested classes and images by band."""

    overall: float | None
    many: float | None
    medium: float | None
    few: float | None
    classes: dict[str, int]
    images: dict[str, int]


def shot_bands(train_counts_C: np.ndarray, convention: str) -> np.ndarray:
    """Returns the band of each class as an index into `SHOT_BANDS`, int [C].

    Args:
        train_counts_C: training images of each class, non-negative integers.
        convention: `paper` (many > 100, few < 20) or `released` (many >= 100, few <= 20).

    Raises:
        ValueError: an unknown convention, or counts that are not a vector of non-negative integers.
    """
    if convention not in SHOT_CONVENTIONS:
        raise ValueError(f"unknown shot convention {convention!r}: choose one of {', '.join(SHOT_CONVENTIONS)}")
    count_C = _integer_vector(train_counts_C, "train_counts")
    if count_C.size and count_C.min() < 0:
        raise ValueError(f"train_counts has a negative count ({count_C.min()})")
    many_from, few_to = SHOT_CONVENTIONS[convention]
    return np.where(count_C >= many_from, 0, np.where(count_C <= few_to, 2, 1))


KNOWN_BANDS = (*SHOT_BANDS, "one")


def known_bands(train_counts_C: np.ndarray, convention: str) -> np.ndarray:
    """Returns the band of each class as an index into `KNOWN_BANDS`, int [C]: `few` without classes of one image.

    Raises as `shot_bands` does.
    """
    band_C = shot_bands(train_counts_C, convention)
    return np.where(np.asarray(train_counts_C) == 1, KNOWN_BANDS.index("one"), band_C)


def known_band_limits(convention: str) -> dict[str, str]:
    """Returns the training images of each of the `KNOWN_BANDS` as text: '> 100', '20 to 100', '2 to 19', '1'."""
    many_from, few_to = SHOT_CONVENTIONS[convention]
    limits = (f"> {many_from - 1}", f"{few_to + 1} to {many_from - 1}", f"2 to {few_to}", "1")
    return dict(zip(KNOWN_BANDS, limits, strict=True))


def shot_accuracy(
    train_counts_C: np.ndarray, label_N: np.ndarray, prediction_N: np.ndarray, convention: str
) -> ShotAccuracy:
    """Returns top-1 accuracy over known images, overall and by shot band (Liu et al., CVPR 2019, section 4).

    `overall` is the fraction of correct images; a band's accuracy is the unweighted mean over its classes. Open images
    are left out; a rejected known image is wrong. Classes without a test image are ignored.

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
    """Returns the tested and the correctly classified images of each class, int64 [C] each, without open images.

    Raises as `validate_labels` does.
    """
    label_N, prediction_N = validate_labels(label_N, prediction_N, classes=classes)
    known_N = label_N != OPEN_LABEL
    right_N = known_N & (label_N == prediction_N)
    return np.bincount(label_N[known_N], minlength=classes), np.bincount(label_N[right_N], minlength=classes)


def class_f1(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> np.ndarray:
    """Returns the F1 of each class and, last, of the unknown class, float64 [C + 1].

    NaN for a class that occurs neither as a label nor as a prediction. Raises as `validate_labels` does.
    """
    from sklearn.metrics import f1_score

    label_N, prediction_N = validate_labels(label_N, prediction_N, classes)
    if not len(label_N):
        return np.full(classes + 1, np.nan)
    labels = [*range(classes), OPEN_LABEL]
    return f1_score(label_N, prediction_N, labels=labels, average=None, zero_division=np.nan)


CALIBRATION_BINS = 15


def expected_calibration_error(
    confidence_N: np.ndarray, right_N: np.ndarray, bins: int = CALIBRATION_BINS
) -> float | None:
    """Returns the expected calibration error (Guo et al., ICML 2017, eq. 3), a fraction; None without an image.

    Bins have equal width and include their upper edge; the first includes 0.

    Args:
        confidence_N: probability of the predicted class, 0 to 1.
        right_N: True if the prediction is correct.

    Raises:
        ValueError: different lengths, or a confidence outside 0 to 1.
    """
    confidence_N, right_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(right_N, dtype=bool)
    if confidence_N.shape != right_N.shape or confidence_N.ndim != 1:
        raise ValueError(f"confidences of shape {confidence_N.shape} for predictions of shape {right_N.shape}")
    if not confidence_N.size:
        return None
    # Negated so that NaN is refused.
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError("confidences must be from 0 to 1")
    upper = np.linspace(0, 1, bins + 1)[1:]
    bin_N = np.searchsorted(upper, confidence_N, side="left")
    confidence, right = (np.bincount(bin_N, weights=value, minlength=bins) for value in (confidence_N, right_N))
    return float(np.abs(right - confidence).sum() / len(right_N))


def split_stats(train_counts_C: np.ndarray, label_N: np.ndarray) -> dict:
    """Returns statistics of a split with labels in -1..C-1, as plain values by name.

    `classes` counts classes with an image in the split; `largest` and `smallest` are the extreme class sizes, None
    without a class. `shots` has, per convention and band of training images, the classes and images of the split.
    """
    known_K = label_N[label_N != OPEN_LABEL]
    images_C = np.bincount(known_K, minlength=len(train_counts_C))
    present_C = images_C > 0
    shots = {}
    for convention in SHOT_CONVENTIONS:
        band_C = shot_bands(train_counts_C, convention)
        members = {band: present_C & (band_C == index) for index, band in enumerate(SHOT_BANDS)}
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
    """Known images that experts and the average of their predictions classify correctly.

    `right`, `lost` and `won` have one count per expert: images it gets right; those it gets right and the average
    wrong; those the average gets right and it wrong. `some_right` counts images that only experts get right,
    `none_right` those that only the average gets right.
    """

    images: int
    average_right: int
    right: tuple[int, ...]
    lost: tuple[int, ...]
    won: tuple[int, ...]
    some_right: int
    none_right: int


def expert_counts(label_N: np.ndarray, expert_KN: Sequence[np.ndarray], average_N: np.ndarray) -> ExpertCounts:
    """Returns counts from labels, each expert's predictions and the predictions of their average, without open images.

    Raises:
        UserError: a label or a prediction below -1.
        ValueError: different lengths, or not vectors of integers.
    """
    label_N, average_N = validate_labels(label_N, average_N)
    known_N = label_N != OPEN_LABEL
    average_N = (average_N == label_N)[known_N]
    right_KN = np.array([(validate_labels(label_N, prediction_N)[1] == label_N)[known_N] for prediction_N in expert_KN])
    some_N = right_KN.any(axis=0)

    def count(mask_KN: np.ndarray) -> tuple[int, ...]:
        return tuple(mask_KN.sum(axis=1).tolist())

    return ExpertCounts(
        images=int(known_N.sum()),
        average_right=int(average_N.sum()),
        right=count(right_KN),
        lost=count(right_KN & ~average_N),
        won=count(~right_KN & average_N),
        some_right=int((some_N & ~average_N).sum()),
        none_right=int((average_N & ~some_N).sum()),
    )
