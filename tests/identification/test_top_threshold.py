"""Thresholds that no score lies above: the highest score of histograms and searches, and the reason in words."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.identification.error_rates import ScoreGrid, ScoreHistograms, top_threshold_reason
from facelt.identification.open_set import open_set_searches


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-8, 8), max_size=6), st.lists(st.integers(-8, 8), max_size=6))
def test_the_highest_score_is_that_of_all_comparisons(mated, nonmated):
    grid = ScoreGrid(1.0, 1 << 6)
    histograms = ScoreHistograms(grid, *(grid.count(np.array(scores) / 8) for scores in (mated, nonmated)))
    if not mated and not nonmated:
        assert histograms.highest_score == -math.inf
        return
    highest = max(mated + nonmated) / 8
    assert histograms.highest_score == highest - grid.resolution / 2
    # Exactly the thresholds that only the highest scores reach have a reason.
    for threshold in np.arange(-70, 70) * grid.resolution + grid.resolution / 4:
        accepted = {score / 8 for score in mated + nonmated if score / 8 >= threshold}
        reason = top_threshold_reason(threshold, histograms.highest_score, is_cosine=False)
        assert (reason is not None) == (accepted <= {highest} and threshold >= highest - grid.resolution / 2)


@pytest.mark.parametrize("copies", [0, 1, 2, 40])
def test_copies_beyond_the_allowed_errors_lift_the_threshold_to_the_top(copies):
    random = np.random.default_rng(copies)
    nonmated = np.append(random.uniform(-0.5, 0.5, 1000 - copies), np.ones(copies))
    grid = ScoreGrid()
    histograms = ScoreHistograms(grid, grid.count(random.uniform(0.3, 0.9, 100)), grid.count(nonmated))
    point = histograms.point(1e-3)
    reason = top_threshold_reason(point.threshold, histograms.highest_score, is_cosine=True)
    # One error is allowed.
    assert (reason is not None) == (copies > 1)
    if copies > 1:
        assert point.fnmr == 1
        assert "two copies of one image" in reason
        assert "highest score observed" in top_threshold_reason(
            point.threshold, histograms.highest_score, is_cosine=False
        )


def test_the_highest_score_of_searches_equals_a_plain_maximum():
    random = np.random.default_rng(2)
    probe_PD, distractor_GD = random.normal(size=(12, 5)), random.normal(size=(9, 5))
    identity_P = np.repeat(np.arange(4), 3)
    reachability_P = random.random(12)
    for half in open_set_searches(probe_PD, identity_P, distractor_GD).halves:
        score = probe_PD.astype(np.float32) @ probe_PD.astype(np.float32).T
        mates = [score[p, e] for p in range(12) for e in half.enrolled_E if identity_P[p] == identity_P[e] and p != e]
        candidates = np.hstack([score[:, half.enrolled_E], (probe_PD @ distractor_GD.T).astype(np.float32)])
        expected = max(*mates, candidates[half.nonmated_N].max())
        assert half.highest_score() == pytest.approx(expected, rel=1e-5)
        searched = set(range(12)) - set(half.enrolled_E.tolist())
        assert half.highest_score(reachability_P) == max(reachability_P[p] for p in searched)
