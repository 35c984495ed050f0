"""Paired comparison of the closed-set accuracies of two models on the same images. C classes, G groups of them."""

from typing import Any

import numpy as np

from facelt.evaluation.evaluate import Evaluation
from facelt.evaluation.known_rates import LEVEL
from facelt.metrics.classification import SHOT_BANDS, per_class_counts, shot_bands
from facelt.stats.comparisons import comparison_values, decide, paired_differences


def have_same_images(reference: Evaluation, evaluation: Evaluation) -> bool:
    """Returns whether both models were tested on the same images and trained on as many images of each class."""
    pairs = [
        (reference.known.index_N, evaluation.known.index_N),
        (reference.known.label_N, evaluation.known.label_N),
        (reference.counts_C, evaluation.counts_C),
    ]
    return reference.convention == evaluation.convention and all(np.array_equal(*pair) for pair in pairs)


def compare_accuracies(reference: Evaluation, evaluation: Evaluation) -> dict[str, Any]:
    """Returns the values of the report's `AccuracyComparison` of two evaluations of the same images.

    `overall` compares the shares of right images, a band the means of its class accuracies, as `shot_accuracy` does.
    Limits and p-values account for the correlation of the models over classes (`paired_differences`), and are those of
    these two trained models: other seeds are not accounted for.
    """
    classes = len(reference.counts_C)
    counts = [per_class_counts(part.label_N, part.class_N, classes) for part in (reference.known, evaluation.known)]
    (images_C, reference_C), (_, right_C) = counts
    band_C = shot_bands(reference.counts_C, reference.convention)
    member_GC = np.stack([band_C == index for index in range(len(SHOT_BANDS))]) & (images_C > 0)
    # One trial for each class of a band, with its accuracy as the events.
    per_image_C = 1 / np.maximum(images_C, 1)
    trial_GC, reference_GC, right_GC = (
        np.concatenate([count_C[None], member_GC * count_C * per_image_C])
        for count_C in (images_C, reference_C, right_C)
    )
    differences = paired_differences(reference_GC, right_GC, trial_GC, level=LEVEL, whole=0)
    measured = [
        (name, diff) for name, diff in zip(("overall", *SHOT_BANDS), differences, strict=True) if diff.identities
    ]
    verdicts = decide([difference.pair for _, difference in measured], level=LEVEL)
    rows = []
    for (name, difference), verdict in zip(measured, verdicts, strict=True):
        values = comparison_values(difference, verdict)
        rows.append({"band": name, "classes": values.pop("identities"), **values})
    return {"reference": reference.name, "level": LEVEL, "differences": rows}
