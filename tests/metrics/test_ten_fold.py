"""Ten-fold accuracy against a plain loop over pairs, folds and thresholds, and against arcface_torch."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.metrics.ten_fold import squared_distances, ten_fold


def plain_ten_fold(distances: list[float], same: list[bool]) -> tuple[list[float], list[float]]:
    """Accuracy and threshold of each fold, one pair at a time."""
    pairs, start, accuracies, result = len(same), 0, [], []
    for fold in range(10):
        stop = start + pairs // 10 + (fold < pairs % 10)
        best = None
        for step in range(400):
            threshold = float(np.arange(0, 4, 0.01)[step])
            right = [(distance < threshold) == answer for distance, answer in zip(distances, same, strict=True)]
            others = sum(right[:start]) + sum(right[stop:])
            if best is None or others > best[0]:
                best = others, sum(right[start:stop]) / (stop - start), threshold
        accuracies.append(best[1])
        result.append(best[2])
        start = stop
    return accuracies, result


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), pairs=st.integers(10, 43), step=st.sampled_from((0.01, 0.005, 0.37)))
def test_equals_a_plain_loop(seed, pairs, step):
    random = np.random.default_rng(seed)
    # On the thresholds themselves and between them, ties included.
    distance_P = random.integers(0, int(4 / step), pairs) * step
    same_P = random.random(pairs) < random.random()
    result = ten_fold(distance_P, same_P)
    accuracies, thresholds = plain_ten_fold(distance_P.tolist(), same_P.tolist())
    assert result.accuracy_F.tolist() == accuracies
    assert result.threshold_F.tolist() == thresholds


def test_equals_arcface_torch_exactly(real_data):
    expected = json.loads((real_data / "verification" / "expected.json").read_text())
    with np.load(real_data / "verification" / "lfw600_embeddings.npz") as file:
        embedding_ND, same_P = file["embeddings"], file["issame"]
    place_P = np.arange(0, len(embedding_ND), 2)
    result = ten_fold(squared_distances(embedding_ND, place_P, place_P + 1, unit=True), same_P)
    assert result.accuracy_F.tolist() == expected["accuracy_folds"]
    assert result.mean == expected["accuracy_mean"]
    assert result.std == expected["accuracy_std"]


def test_folds_are_in_the_order_of_the_pairs():
    # Of the last ten pairs all are wrong at the threshold that is right for the ninety before.
    distance_P = np.concatenate([np.tile([0.5, 3.0], 45), np.tile([3.0, 0.5], 5)])
    result = ten_fold(distance_P, np.tile([True, False], 50))
    assert result.accuracy_F.tolist() == [1.0] * 9 + [0.0]
    assert result.mean == 0.9
    assert result.std == pytest.approx(0.3)
    # The smallest threshold above 0.5, as good as any up to 3.
    assert result.threshold_F.tolist() == [0.51] * 10


def test_distances_are_those_of_float64_unit_vectors():
    random = np.random.default_rng(0)
    embedding_UD = random.standard_normal((5, 8)).astype(np.float16)
    left_P, right_P = np.array([0, 1, 4, 2]), np.array([1, 1, 0, 3])
    result = squared_distances(embedding_UD, left_P, right_P, unit=True)
    for pair, (left, right) in enumerate(zip(left_P, right_P, strict=True)):
        left_PD, right_PD = (embedding_UD[index].astype(float) for index in (left, right))
        cosine = left_PD @ right_PD / np.sqrt((left_PD @ left_PD) * (right_PD @ right_PD))
        assert result[pair] == pytest.approx(2 - 2 * cosine, abs=1e-12)
        as_it_is = squared_distances(embedding_UD, left_P, right_P, unit=False)[pair]
        assert as_it_is == pytest.approx(2 - 2 * left_PD @ right_PD, abs=1e-12)
    assert result[1] == 0


def test_a_zero_or_infinite_vector_has_no_distance():
    embedding_UD = np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [0.0, 1.0]])
    left_P, right_P = np.array([0, 1, 2, 3, 1]), np.array([1, 0, 1, 1, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit_P = squared_distances(embedding_UD, left_P, right_P, unit=True)
        other_P = squared_distances(embedding_UD, left_P, right_P, unit=False)
    assert np.isnan(unit_P).tolist() == [True, True, True, True, False]
    assert np.isnan(other_P).tolist() == [False, False, True, True, False]
    assert unit_P[4] == pytest.approx(2)


@pytest.mark.parametrize(
    ("distances", "same", "reason"),
    [
        (np.zeros(9), np.zeros(9, bool), "9 pairs are too few for 10 folds"),
        (np.zeros(12), np.zeros(11, bool), r"distances of shape \[12\] for labels of shape \[11\]"),
        (np.zeros((12, 2)), np.zeros((12, 2), bool), "distances of shape"),
        (np.array([np.nan] * 10), np.zeros(10, bool), "must be finite"),
    ],
)
def test_invalid_input_is_refused(distances, same, reason):
    with pytest.raises(ValueError, match=reason):
        ten_fold(distances, same)
