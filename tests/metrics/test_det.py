"""Histograms of scores: rates at edges are those of a plain count, and thresholds are the lowest that will do."""

from itertools import combinations

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.metrics.det import ScoreHistograms
from facelt.metrics.groups import Units


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    person_N = np.repeat(np.arange(10), 6)
    gender_N = np.where(person_N < 5, "f", "m")
    left, right = np.array(list(combinations(range(60), 2))).T
    mated = person_N[left] == person_N[right]
    # Women's non-mated pairs score higher; some scores lie on edges, some outside.
    score = random.normal(0, 0.2, len(left)) + 0.6 * mated + 0.3 * (gender_N[right] == "f")
    score[::7] = np.round(score[::7], 1)
    units = Units.of([f"p{i}" for i in person_N], {"gender": gender_N.tolist()})
    histograms = ScoreHistograms(units, units.grouping(["gender"]), low=-0.5, high=1, bins=150)
    for part in np.array_split(random.permutation(len(left)), 4):
        histograms.add(score[part], mated[part], left[part], right[part])
    return histograms, gender_N, score, mated, left, right


@pytest.mark.parametrize("pair", [None, ("f", "f"), ("f", "m"), ("m", "m")])
def test_rates_at_edges_are_exact(world, pair):
    histograms, gender_N, score, mated, left, right = world
    place = {"f": 0, "m": 1}
    det = histograms.overall() if pair is None else histograms.across(place[pair[0]], place[pair[1]])
    inside = np.ones(len(score), dtype=bool)
    if pair is not None:
        inside = np.array([{gender_N[a], gender_N[b]} == set(pair) for a, b in zip(left, right, strict=True)])
    for b in (1, 20, 50, 80, 110, 150):
        threshold = det.threshold_B[b]
        assert det.fmr_B[b] == pytest.approx(np.mean(score[inside & ~mated] >= threshold))
        if pair != ("f", "m"):
            assert det.fnmr_B[b] == pytest.approx(np.mean(score[inside & mated] < threshold))
    assert (det.non_mated, det.mated) == ((inside & ~mated).sum(), (inside & mated).sum())
    if pair == ("f", "m"):
        assert np.isnan(det.fnmr_B).all()


def test_ends_hold_what_lies_outside(world):
    det = world[0].overall()
    assert (det.fmr_B[0], det.fnmr_B[0]) == (1, 0)
    assert (det.threshold_B[-1], det.fmr_B[-1], det.fnmr_B[-1]) == (np.inf, 0, 1)


def test_the_threshold_is_the_lowest_that_will_do(world):
    histograms, _, score, mated, *_ = world
    det = histograms.overall()
    position = det.threshold_at(0.05)
    assert np.mean(score[~mated] >= det.threshold_B[position]) <= 0.05
    assert np.mean(score[~mated] >= det.threshold_B[position - 1]) > 0.05


def test_no_threshold_where_scores_go_beyond_the_last_edge():
    units = Units.of(["a", "b"], {"gender": ["f", "m"]})
    histograms = ScoreHistograms(units, units.grouping(["gender"]), low=0, high=1, bins=10)
    histograms.add([0.5, 1.2], [False, False], [0, 0], [1, 1])
    assert histograms.overall().threshold_B[histograms.overall().threshold_at(0.5)] == pytest.approx(0.6)
    assert histograms.overall().threshold_at(0.1) is None


def test_own_thresholds(world):
    histograms, gender_N, score, mated, left, right = world
    women, men = histograms.own_thresholds(0.05)
    shared = histograms.overall().threshold_B[histograms.overall().threshold_at(0.05)]
    own = (gender_N[left] == "f") & (gender_N[right] == "f")
    assert women.group == ("f",)
    assert women.shared_fmr == pytest.approx(np.mean(score[own & ~mated] >= shared))
    assert women.shared_fnmr == pytest.approx(np.mean(score[own & mated] < shared))
    assert women.fmr <= 0.05 < women.shared_fmr
    assert women.fnmr == pytest.approx(np.mean(score[own & mated] < women.threshold))
    assert women.threshold > shared > men.threshold
    assert women.expected_errors == pytest.approx(0.05 * (own & ~mated).sum())


def test_a_group_without_pairs_has_no_threshold():
    units = Units.of(["a", "b", "c"], {"gender": ["f", "f", "m"]})
    histograms = ScoreHistograms(units, units.grouping(["gender"]))
    histograms.add([0.1, 0.2], [False, False], [0, 1], [1, 2])
    men = histograms.own_thresholds(0.5)[1]
    assert (men.threshold, men.fmr, men.fnmr, men.shared_fmr, men.shared_fnmr) == (None,) * 5
    assert men.expected_errors == 0


def test_bad_input():
    units = Units.of(["a", "b"], {"gender": ["f", "f"]})
    histograms = ScoreHistograms(units, units.grouping(["gender"]))
    with pytest.raises(UserError, match="no number"):
        histograms.add([np.nan], [False], [0], [1])
    with pytest.raises(UserError, match="0 non-mated pairs are too few"):
        histograms.own_thresholds(0.1)
    with pytest.raises(ValueError, match="0 bins"):
        ScoreHistograms(units, units.grouping(["gender"]), bins=0)
