"""Detection of unknown images against pair counting and an evaluation of every threshold."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.metrics.open_set import DetectionMetrics, detection_metrics, oscr_curve, threshold_at_tpr

# Few values, so that most scores are tied.
TIED = st.lists(st.integers(-2, 3).map(lambda number: number / 4), min_size=1, max_size=25)


def rates(known, open_images):
    """(TPR, FPR) at every threshold that makes a difference, from the highest."""
    thresholds = [np.inf, *sorted({*known, *open_images}, reverse=True)]
    return [(np.mean([s >= t for s in known]), np.mean([s >= t for s in open_images])) for t in thresholds]


def beats(known, unknown):
    return (known > unknown) + 0.5 * (known == unknown)


def average_precision(positive, negative):
    """The mean over positives of the precision at the threshold that first accepts them."""
    accepted = [[score >= threshold for score in positive + negative] for threshold in positive]
    return np.mean([sum(row[: len(positive)]) / sum(row) for row in accepted])


@settings(max_examples=60, deadline=None)
@given(TIED, TIED)
def test_areas_equal_counting_pairs_and_thresholds(known, open_images):
    result = detection_metrics(np.array(known), np.array(open_images))
    assert result.auroc == pytest.approx(np.mean([beats(k, o) for k in known for o in open_images]))
    assert result.aupr_known_positive == pytest.approx(average_precision(known, open_images))
    rejected = [-score for score in open_images], [-score for score in known]
    assert result.aupr_open_positive == pytest.approx(average_precision(*rejected))
    assert result.reason is None


@settings(max_examples=60, deadline=None)
@given(TIED, TIED)
def test_equals_an_evaluation_of_every_threshold(known, open_images):
    result = detection_metrics(np.array(known), np.array(open_images))
    tpr, fpr = next((tpr, fpr) for tpr, fpr in rates(known, open_images) if tpr >= 0.95 - 1e-12)
    assert result.fpr_at_95_tpr == pytest.approx(fpr)
    assert result.detection_error_at_95_tpr == pytest.approx(0.5 * (1 - tpr) + 0.5 * fpr)
    errors = [0.5 * (1 - tpr) + 0.5 * fpr for tpr, fpr in rates(known, open_images)]
    assert result.detection_error_minimum == pytest.approx(min(errors))
    threshold = threshold_at_tpr(np.array(known))
    assert np.mean([score >= threshold for score in known]) == pytest.approx(tpr)
    assert np.mean([score >= threshold for score in open_images]) <= fpr


def test_the_error_of_the_tables_is_half_of_fpr_and_of_5_percent():
    # 1000 known and 1000 open images, of which 822 score above the 95 % threshold: the row of ODIN's and OLTR's tables.
    known = np.concatenate([np.full(950, 0.9), np.full(50, 0.1)])
    open_images = np.concatenate([np.full(822, 0.95), np.full(178, 0.5)])
    result = detection_metrics(known, open_images)
    assert result.fpr_at_95_tpr == pytest.approx(0.822)
    assert result.detection_error_at_95_tpr == pytest.approx(0.436)
    assert result.detection_error_minimum == pytest.approx(0.436)


def test_95_percent_is_counted_exactly():
    for size in (1, 19, 20, 21, 60, 100, 1000):
        scores = np.arange(size, dtype=float)
        accepted = int((scores >= threshold_at_tpr(scores)).sum())
        assert 100 * accepted >= 95 * size > 100 * (accepted - 1)
    assert threshold_at_tpr(np.array([])) is None


def test_constant_scores_are_uninformative():
    result = detection_metrics(np.full(4, 0.5), np.full(6, 0.5))
    assert (result.auroc, result.fpr_at_95_tpr, result.detection_error_minimum) == (0.5, 1.0, 0.5)
    assert (result.aupr_known_positive, result.aupr_open_positive) == (0.4, 0.6)


def test_perfect_and_reversed_scores():
    perfect = detection_metrics(np.array([0.8, 0.9]), np.array([0.1, 0.2]))
    assert (perfect.auroc, perfect.fpr_at_95_tpr, perfect.detection_error_minimum) == (1, 0, 0)
    reversed_ = detection_metrics(np.array([0.1, 0.2]), np.array([0.8, 0.9]))
    assert (reversed_.auroc, reversed_.fpr_at_95_tpr, reversed_.detection_error_minimum) == (0, 1, 0.5)


def test_without_known_or_open_images_there_is_a_reason_instead():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detection_metrics(np.array([]), np.array([0.5])) == DetectionMetrics(
            reason="there are 0 known and 1 open images"
        )
        assert detection_metrics(np.array([0.5]), np.array([])) == DetectionMetrics(
            reason="there are 1 known and 0 open images"
        )
        assert detection_metrics(np.array([]), np.array([])).reason == "there are 0 known and 0 open images"
        assert oscr_curve([], [], [0.5]) is None
        assert oscr_curve([0.5], [True], []) is None


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        detection_metrics(np.array([0.5, np.nan]), np.array([0.5]))
    with pytest.raises(ValueError, match="finite"):
        oscr_curve([0.5], [True], [np.inf])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 3), st.booleans()), min_size=1, max_size=25), TIED)
def test_oscr_equals_every_threshold_and_its_area_counted_pairs(known, open_images):
    scores, right = [score / 4 for score, _ in known], [answer for _, answer in known]
    result = oscr_curve(scores, right, open_images)
    pairs = [answer * beats(score, other) for score, answer in zip(scores, right, strict=True) for other in open_images]
    assert result.area == pytest.approx(np.mean(pairs))
    thresholds = [np.inf, *sorted({*scores, *open_images}, reverse=True)]
    expected = {
        (
            round(float(np.mean([other >= t for other in open_images])), 9),
            round(float(np.mean([a and s >= t for s, a in zip(scores, right, strict=True)])), 9),
        )
        for t in thresholds
    }
    assert {tuple(point) for point in np.round([*zip(result.fpr_T, result.rate_T, strict=True)], 9)} == expected
    assert (result.fpr_T[-1], result.rate_T[-1]) == (1, np.mean(right))
