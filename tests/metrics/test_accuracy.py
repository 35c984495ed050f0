"""Closed-set accuracy by shots and the open-set F-measures, against the released code's figures and plain counting."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.metrics.classification import (
    KNOWN_BANDS,
    SHOT_BANDS,
    known_band_limits,
    known_bands,
    shot_accuracy,
    shot_bands,
)
from facelt.metrics.open_set import closed_macro_f, open_set_f_measure


@pytest.fixture(scope="module")
def released(golden):
    with np.load(golden / "oltr_metrics.npz", allow_pickle=False) as file:
        return dict(file)


def test_shot_accuracy_equals_the_released_code(released):
    counts = np.bincount(released["train_labels"])
    result = shot_accuracy(counts, released["labels"], released["preds"], "released")
    assert (result.overall, result.many, result.medium, result.few) == tuple(
        float(released[name]) for name in ("overall", "many", "medium", "few")
    )


def test_f_measures_equal_the_released_code(released):
    labels, predictions = released["labels"], released["preds"]
    assert open_set_f_measure(labels, predictions, "released") == float(released["f_open"])
    assert closed_macro_f(labels, predictions) == float(released["f_closed"])


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("paper", ["few", "medium", "medium", "medium", "many"]), ("released", ["few", "few", "medium", "many", "many"])],
)
def test_bands_at_their_edges(convention, expected):
    counts = np.array([19, 20, 21, 100, 101])
    assert [SHOT_BANDS[band] for band in shot_bands(counts, convention)] == expected


@pytest.mark.parametrize(
    ("convention", "limits"),
    [
        ("paper", {"many": "> 100", "medium": "20 to 100", "few": "2 to 19", "one": "1"}),
        ("released", {"many": "> 99", "medium": "21 to 99", "few": "2 to 20", "one": "1"}),
    ],
)
def test_known_bands_are_those_of_their_limits(convention, limits):
    counts = np.arange(1, 300)
    expected = []
    for count in counts.tolist():
        for band, text in limits.items():
            low, _, high = text.removeprefix("> ").partition(" to ")
            if count > int(low) if text.startswith(">") else int(low) <= count <= int(high or low):
                expected.append(band)
    assert [KNOWN_BANDS[band] for band in known_bands(counts, convention)] == expected
    assert known_band_limits(convention) == limits
    with pytest.raises(ValueError, match="negative count"):
        known_bands([-1], convention)


def test_a_band_is_the_mean_of_its_classes_and_overall_counts_images():
    counts = [500, 200, 50, 5]
    # Class 0: 1 of 1 right; class 1: 1 of 3; class 2: 0 of 1, rejected; class 3: never tested; one open image.
    labels = [0, 1, 1, 1, 2, -1]
    predictions = [0, 1, 0, 3, -1, 2]
    result = shot_accuracy(counts, labels, predictions, "paper")
    assert result.many == (1 + 1 / 3) / 2
    assert result.medium == 0
    assert result.few is None
    assert result.overall == 2 / 5
    assert result.classes == {"many": 2, "medium": 1, "few": 0}
    assert result.images == {"many": 4, "medium": 1, "few": 0}


def test_no_known_image_gives_none_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels, predictions in (([], []), ([-1, -1], [0, -1])):
            result = shot_accuracy([5, 200], labels, predictions, "released")
            assert (result.overall, result.many, result.medium, result.few) == (None, None, None, None)
            assert closed_macro_f(labels, predictions) is None
            assert open_set_f_measure(labels, predictions, "paper") is None


def test_the_two_forms_differ_by_rejected_known_images():
    # TP 2; wrong 1; rejected known 1; open 2, one of them accepted.
    labels = [0, 1, 2, 2, -1, -1]
    predictions = [0, 1, 0, -1, -1, 1]
    assert open_set_f_measure(labels, predictions, "paper") == pytest.approx(2 * 2 / (2 * 2 + 1 + 1), abs=1e-11)
    assert open_set_f_measure(labels, predictions, "released") == pytest.approx(2 * 2 / (2 * 2 + 2 + 1), abs=1e-11)
    assert open_set_f_measure([0, 1], [1, -1], "released") == 0


def test_the_paper_form_rises_when_wrong_predictions_are_rejected():
    labels, wrong, rejected = [0, 0, 0, -1], [0, 1, 1, -1], [0, -1, -1, -1]
    assert open_set_f_measure(labels, rejected, "paper") > open_set_f_measure(labels, wrong, "paper")
    assert open_set_f_measure(labels, rejected, "released") == open_set_f_measure(labels, wrong, "released")


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    data=st.data(),
    convention=st.sampled_from(["paper", "released"]),
)
def test_shot_accuracy_equals_counting_by_hand(counts, data, convention):
    size = data.draw(st.integers(0, 25))
    values = st.lists(st.integers(-1, len(counts) - 1), min_size=size, max_size=size)
    labels, predictions = data.draw(values), data.draw(values)
    bands = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(counts):
        answers = [p for t, p in zip(labels, predictions, strict=True) if t == label]
        if answers:
            many = count > 100 if convention == "paper" else count >= 100
            few = count < 20 if convention == "paper" else count <= 20
            bands["many" if many else "few" if few else "medium"].append(answers.count(label) / len(answers))
    result = shot_accuracy(counts, labels, predictions, convention)
    for band, accuracies in bands.items():
        expected = sum(accuracies) / len(accuracies) if accuracies else None
        assert getattr(result, band) == (None if expected is None else pytest.approx(expected))
        assert result.classes[band] == len(accuracies)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=30))
def test_macro_f_is_the_mean_over_the_classes_that_occur(pairs):
    known = [(label, prediction) for label, prediction in pairs if label != -1]
    result = closed_macro_f([p[0] for p in pairs], [p[1] for p in pairs])
    if not known:
        assert result is None
        return
    classes = {value for pair in known for value in pair}
    f1 = [2 * known.count((c, c)) / sum(pair.count(c) for pair in known) for c in classes]
    assert result == pytest.approx(sum(f1) / len(f1))


@pytest.mark.parametrize(
    ("labels", "predictions", "words"),
    [
        ([0, 3], [0, 1], "label 3 of image 1"),
        ([0, -2], [0, 0], "label -2"),
        ([0, 1], [9, 1], "prediction 9 of image 0"),
    ],
)
def test_a_class_outside_the_range_is_named(labels, predictions, words):
    with pytest.raises(UserError, match=words):
        shot_accuracy([10, 10, 10], labels, predictions, "paper")


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        shot_accuracy([10, 10], [0, 1], [0], "paper")
    with pytest.raises(ValueError, match="integers"):
        shot_accuracy([10, 10], [0.0, 1.0], [0, 1], "paper")
    with pytest.raises(ValueError, match="vector"):
        closed_macro_f([[0, 1]], [0, 1])
    with pytest.raises(ValueError, match="negative"):
        shot_bands([-1], "paper")
    with pytest.raises(ValueError, match="paper, released"):
        shot_bands([1], "oltr")
    with pytest.raises(ValueError, match="paper, released"):
        open_set_f_measure([0], [0], "strict")
