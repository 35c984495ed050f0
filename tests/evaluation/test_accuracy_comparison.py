"""Paired differences of closed-set accuracies: a plain computation by images and classes."""

from types import SimpleNamespace

import numpy as np
import pytest

from facelt.evaluation.accuracy_comparison import compare_accuracies, have_same_images
from facelt.metrics.classification import shot_accuracy

# 12 classes: four with many, four with medium and four with few training images.
TRAINING = np.repeat([200, 50, 5], 4)


def evaluation(right_share: float, seed: int, images_C: np.ndarray, name: str = "run/other", **changes):
    """A model that names each image right with this probability; both models' errors are drawn by image."""
    label_N = np.repeat(np.arange(len(images_C)), images_C)
    is_right_N = np.random.default_rng(seed).random(len(label_N)) < right_share
    prediction_N = np.where(is_right_N, label_N, (label_N + 1) % len(images_C))
    known = SimpleNamespace(index_N=np.arange(len(label_N)), label_N=label_N, class_N=prediction_N)
    return SimpleNamespace(**{"known": known, "counts_C": TRAINING, "convention": "paper", "name": name, **changes})


UNEQUAL = np.array([40, 10, 25, 5, 30, 30, 8, 12, 50, 20, 10, 4])


@pytest.mark.parametrize("images_C", [np.full(12, 30), UNEQUAL])
def test_rates_and_differences_are_those_of_the_two_reports(images_C):
    models = evaluation(0.5, 1, images_C, "run/plain"), evaluation(0.6, 2, images_C)
    comparison = compare_accuracies(*models)
    assert (comparison["reference"], comparison["level"]) == ("run/plain", 0.95)
    reports = [shot_accuracy(TRAINING, model.known.label_N, model.known.class_N, "paper") for model in models]
    rows = comparison["differences"]
    assert [(row["band"], row["classes"]) for row in rows] == [("overall", 12), ("many", 4), ("medium", 4), ("few", 4)]
    for row in rows:
        before, after = (getattr(report, row["band"]) for report in reports)
        assert (row["reference_rate"], row["rate"]) == pytest.approx((before, after))
        assert row["difference"] == pytest.approx(after - before)
        assert row["low"] < row["difference"] < row["high"]
        assert row["adjusted_low"] <= row["low"]
        assert row["high"] <= row["adjusted_high"]


def test_limits_are_close_to_those_of_a_paired_t_interval_over_classes():
    images_C = np.full(12, 400)
    models = evaluation(0.5, 3, images_C), evaluation(0.55, 4, images_C)
    accuracy_2C = [(model.known.class_N == model.known.label_N).reshape(12, 400).mean(axis=1) for model in models]
    difference_C = accuracy_2C[1] - accuracy_2C[0]
    half_width = 2.201 * difference_C.std(ddof=1) / np.sqrt(12)  # Student's t, 11 degrees of freedom
    overall = compare_accuracies(*models)["differences"][0]
    assert (overall["high"] - overall["low"]) / 2 == pytest.approx(half_width, rel=0.1)


def test_a_model_and_itself_do_not_differ():
    model = evaluation(0.5, 1, UNEQUAL)
    rows = compare_accuracies(model, model)["differences"]
    assert all(row["difference"] == 0 and not row["decided"] for row in rows)


def test_a_large_difference_is_decided():
    rows = compare_accuracies(evaluation(0.3, 1, np.full(12, 50)), evaluation(0.8, 2, np.full(12, 50)))["differences"]
    assert rows[0]["decided"]
    assert rows[0]["adjusted_low"] > 0


def test_a_band_without_test_images_has_no_row():
    models = [evaluation(share, 1, np.where(TRAINING == 50, 0, 20)) for share in (0.4, 0.5)]
    assert [row["band"] for row in compare_accuracies(*models)["differences"]] == ["overall", "many", "few"]


def test_only_the_same_images_and_training_counts_are_compared():
    model = evaluation(0.5, 1, UNEQUAL)
    assert have_same_images(model, evaluation(0.6, 2, UNEQUAL))
    assert not have_same_images(model, evaluation(0.6, 2, UNEQUAL[::-1]))
    assert not have_same_images(model, evaluation(0.6, 2, UNEQUAL, counts_C=TRAINING + 1))
    assert not have_same_images(model, evaluation(0.6, 2, UNEQUAL, convention="released"))
    other_images = evaluation(0.6, 2, UNEQUAL)
    other_images.known.index_N = other_images.known.index_N + 1
    assert not have_same_images(model, other_images)
