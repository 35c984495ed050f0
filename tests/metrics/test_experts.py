"""Expert counts against a plain loop over images."""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.metrics.classification import expert_counts


def test_equals_a_plain_loop():
    random = np.random.default_rng(0)
    label_N = random.integers(-1, 4, 500)
    expert_KN = np.where(random.random((3, 500)) < 0.6, label_N, random.integers(0, 4, (3, 500)))
    average_N = np.where(random.random(500) < 0.7, label_N, random.integers(0, 4, 500))
    images = average_right = some = none = 0
    right, lost, won = [0] * 3, [0] * 3, [0] * 3
    for label, *experts, average in zip(label_N, *expert_KN, average_N, strict=True):
        if label < 0:
            continue
        images += 1
        average_right += average == label
        some += average != label and label in experts
        none += average == label and label not in experts
        for index, expert in enumerate(experts):
            right[index] += expert == label
            lost[index] += expert == label and average != label
            won[index] += expert != label and average == label
    result = expert_counts(label_N, expert_KN, average_N)
    assert (result.images, result.average_right, result.some_right, result.none_right) == (
        images,
        average_right,
        some,
        none,
    )
    assert (list(result.right), list(result.lost), list(result.won)) == (right, lost, won)
    assert min(*lost, *won, some, none) > 0


def test_no_image_counts_nothing():
    none_N = np.empty(0, np.int64)
    result = expert_counts(none_N, [none_N, none_N], none_N)
    assert (result.images, result.right, result.lost, result.some_right) == (0, (0, 0), (0, 0), 0)


def test_wrong_vectors_are_refused():
    with pytest.raises(ValueError, match="3 labels but 2 predictions"):
        expert_counts(np.arange(3), [np.arange(3)], np.arange(2))
    with pytest.raises(ValueError, match="3 labels but 2 predictions"):
        expert_counts(np.arange(3), [np.arange(2)], np.arange(3))
    with pytest.raises(UserError, match="prediction -2 of image 0"):
        expert_counts(np.zeros(1, int), [np.full(1, -2)], np.zeros(1, int))
