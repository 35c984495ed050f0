"""F1 of each class against the formula, class by class."""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.metrics.classification import class_f1


def plain_f1(label_N, prediction_N, label):
    """2 TP / (images of the class + images predicted as it); NaN if the class does not occur."""
    occurrences = (label_N == label).sum() + (prediction_N == label).sum()
    return 2 * ((label_N == label) & (prediction_N == label)).sum() / occurrences if occurrences else np.nan


@pytest.mark.parametrize("seed", range(5))
def test_f1_of_each_class_and_of_the_unknown_class(seed):
    random = np.random.default_rng(seed)
    label_N, prediction_N = random.integers(-1, 6, 60), random.integers(-1, 6, 60)
    expected = [plain_f1(label_N, prediction_N, label) for label in (0, 1, 2, 3, 4, 5, -1)]
    np.testing.assert_array_equal(class_f1(label_N, prediction_N, 6), expected)


def test_a_class_that_does_not_occur_has_no_f1():
    f1 = class_f1(np.array([0, 0, 1]), np.array([0, 3, 0]), 4)
    np.testing.assert_allclose(f1, [2 * 1 / (2 + 2), 0, np.nan, 0, np.nan])


def test_no_image_gives_no_f1():
    assert np.isnan(class_f1(np.empty(0, int), np.empty(0, int), 2)).tolist() == [True] * 3


def test_a_label_outside_the_range_is_refused():
    with pytest.raises(UserError, match="label 4 of image 1 is outside -1 to 3"):
        class_f1(np.array([0, 4]), np.array([0, 0]), 4)
