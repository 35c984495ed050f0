"""Open-set confusion against counting image by image; macro F1 with an unknown class; counts by class."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.metrics.classification import per_class_counts, shot_accuracy
from facelt.metrics.open_set import CONFUSION_COLUMNS, CONFUSION_ROWS, open_confusion, open_macro_f

COUNTS = [500, 101, 100, 20, 19, 1]
PAIRS = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=30)


def columns(pairs):
    return np.array([pair[0] for pair in pairs], int), np.array([pair[1] for pair in pairs], int)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.sampled_from(["paper", "released"]))
def test_every_image_is_counted_in_one_cell(pairs, convention):
    bands = {"paper": "many many medium medium few few", "released": "many many many few few few"}[convention].split()
    expected = Counter(
        ("open" if label < 0 else bands[label],
         "rejected" if answer < 0 else "right" if answer == label else bands[answer])
        for label, answer in pairs
    )  # fmt: skip
    result = open_confusion(COUNTS, *columns(pairs), convention)
    for row, true in enumerate(CONFUSION_ROWS):
        assert result[row].tolist() == [expected[true, answer] for answer in CONFUSION_COLUMNS]


def test_agrees_with_the_shot_accuracy_of_the_same_predictions(golden):
    with np.load(golden / "oltr_metrics.npz", allow_pickle=False) as file:
        counts, label_N, answer_N = np.bincount(file["train_labels"]), file["labels"], file["preds"]
    result = open_confusion(counts, label_N, answer_N, "released")
    accuracy = shot_accuracy(counts, label_N, answer_N, "released")
    assert dict(zip(CONFUSION_ROWS, result.sum(1).tolist(), strict=True)) == {
        **accuracy.images,
        "open": int((label_N < 0).sum()),
    }
    assert result[:, 0].sum() / result[:3].sum() == pytest.approx(accuracy.overall)


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_macro_f_with_the_unknown_class_is_the_mean_over_the_classes_that_occur(pairs):
    result = open_macro_f(*columns(pairs))
    if all(label >= 0 for label, _ in pairs):
        assert result is None
    else:
        classes = {value for pair in pairs for value in pair}
        f1 = [2 * pairs.count((c, c)) / sum(pair.count(c) for pair in pairs) for c in classes]
        assert result == pytest.approx(sum(f1) / len(f1))


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_class_counts_equal_a_loop(pairs):
    images_C, right_C = per_class_counts(*columns(pairs), 6)
    assert images_C.tolist() == [sum(label == number for label, _ in pairs) for number in range(6)]
    assert right_C.tolist() == [sum(label == answer == number for label, answer in pairs) for number in range(6)]


def test_a_class_outside_the_range_is_named():
    with pytest.raises(UserError, match="prediction 6 of image 1"):
        open_confusion(COUNTS, [0, 1], [0, 6], "paper")
    with pytest.raises(UserError, match="label 2 of image 0"):
        per_class_counts([2], [0], 2)
    with pytest.raises(ValueError, match="paper, released"):
        open_confusion(COUNTS, [0], [0], "oltr")
