"""How much better each class is recognised by one model than by another (OLTR, Figure 6).

N images, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch

from facelt.engine.data import Split
from facelt.engine.figures.source import Source
from facelt.engine.outputs import each_output
from facelt.errors import UserError
from facelt.metrics.class_f1 import class_f1
from facelt.metrics.labels import OPEN_LABEL


@dataclass(frozen=True)
class ClassGains:
    """Classes, the one of most training images first, and last -1 for the open set if that was asked for.

    `class_K` and `count_K` int64 [K]; F1 as fractions, float [K] each, NaN where a class was neither met nor named.
    """

    class_K: np.ndarray
    count_K: np.ndarray
    f1_K: np.ndarray
    other_f1_K: np.ndarray

    @property
    def gain_K(self) -> np.ndarray:
        return self.f1_K - self.other_f1_K


def class_gains(source: Source, other: Source, split: str, threshold: float | None) -> ClassGains:
    """F1 of each class by both models on the same images.

    With a threshold, images whose largest probability is below it are rejected, and the images of the split `open`
    join as one more class, which is to be rejected. Raises UserError where the models know other classes or the images
    are not the same.
    """
    counts_C, other_counts_C = source.data.train_counts, other.data.train_counts
    if not np.array_equal(counts_C, other_counts_C):
        raise UserError("--against: that model was trained on other classes, or on other numbers of their images")
    open_set = threshold is not None
    answers = []
    for one in (source, other):
        parts = [_answers(one, one.split(name), threshold) for name in ((split, "open") if open_set else (split,))]
        answers.append(tuple(np.concatenate(column) for column in zip(*parts, strict=True)))
    (label_N, prediction_N), (other_label_N, other_prediction_N) = answers
    if not np.array_equal(label_N, other_label_N):
        raise UserError("--against: that model's images of the split are not the same ones")
    f1, other_f1 = (class_f1(label_N, answer_N, len(counts_C)) for answer_N in (prediction_N, other_prediction_N))
    # A stable sort keeps the data's order among classes of as many images; the open set follows them all.
    order_K = np.append(np.argsort(-counts_C, kind="stable"), [len(counts_C)] if open_set else []).astype(np.int64)
    class_K = np.append(np.arange(len(counts_C)), OPEN_LABEL)[order_K]
    return ClassGains(class_K, np.append(counts_C, 0)[order_K], f1[order_K], other_f1[order_K])


def _answers(source: Source, split: Split, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions), int64 [N] each; -1 where the image is rejected."""
    none = torch.empty(0, dtype=torch.int64)
    labels, predictions = [none], [none]
    for found, _ in each_output(source.method, split, source.data.preparation, source.reading):
        probability_N, class_N = found.logit_NC.softmax(1).max(1)
        rejected_N = probability_N < (0 if threshold is None else threshold)
        predictions.append(class_N.masked_fill(rejected_N, OPEN_LABEL))
        labels.append(found.label_N)
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()
