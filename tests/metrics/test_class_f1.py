"""F1 of each class beside scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from facelt.errors import UserError
from facelt.metrics.classification import class_f1


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_f1_of_each_class_and_of_the_open_set(seed):
    random = np.random.default_rng(seed)
    label_N, prediction_N = random.integers(-1, 6, 60), random.integers(-1, 6, 60)
    expected = f1_score(label_N, prediction_N, labels=[0, 1, 2, 3, 4, 5, -1], average=None)
    np.testing.assert_allclose(class_f1(label_N, prediction_N, 6), expected)


def test_a_class_that_is_neither_met_nor_named_has_none():
    found = class_f1(np.array([0, 0, 1]), np.array([0, 3, 0]), 4)
    np.testing.assert_allclose(found, [2 * 1 / (2 + 2), 0, np.nan, 0, np.nan])


def test_a_label_of_no_class_is_refused():
    with pytest.raises(UserError, match="label 4 of image 1 is outside -1 to 3"):
        class_f1(np.array([0, 4]), np.array([0, 0]), 4)
