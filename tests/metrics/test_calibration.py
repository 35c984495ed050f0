"""Expected calibration error against a loop over bins."""

import itertools
import warnings

import numpy as np
import pytest

from facelt.metrics.classification import expected_calibration_error


def plain(confidences, right, bins=15):
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        members = [i for i, value in enumerate(confidences) if low < value <= high or value == low == 0]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            confidence = sum(confidences[i] for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_plain_sum_over_bins(seed):
    random = np.random.default_rng(seed)
    # Half of them exactly on an edge, both ends among them.
    confidences = np.concatenate([random.random(60), np.linspace(0, 1, 16)[random.integers(0, 16, 60)], [0.0, 1.0]])
    right = random.random(len(confidences)) < confidences
    expected = plain(confidences.tolist(), right.tolist())
    assert expected_calibration_error(confidences, right) == pytest.approx(expected, abs=1e-12)


def test_confident_and_correct_is_calibrated_confident_and_wrong_is_not():
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1
    assert expected_calibration_error([0.5, 0.5], [True, False]) == 0
    # In one bin they would cancel.
    assert expected_calibration_error([0.9, 0.1], [False, True]) == pytest.approx(0.9)


def test_no_image_gives_none_and_invalid_input_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert expected_calibration_error([], []) is None
    for wrong in (1.1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            expected_calibration_error([wrong], [True])
    with pytest.raises(ValueError, match="shape"):
        expected_calibration_error([0.5, 0.5], [True])
