"""Verification of listed pairs against plain counting: operating points, people, and confidence limits."""

import numpy as np
import pytest
from scipy.special import stdtrit

from facelt.errors import UserError
from facelt.identification.pair_verification import PAIR_FARS, connected_identities, verify_pairs


def pairs_of(scores: list[float], same: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns embeddings [2P,2] of pairs with these cosines; every image occurs once."""
    angle_P = np.arccos(scores)
    left_PD = np.tile([1.0, 0.0], (len(scores), 1))
    embedding_ND = np.stack([left_PD, np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1)], axis=1).reshape(-1, 2)
    place_P = np.arange(0, 2 * len(scores), 2)
    return embedding_ND, place_P, place_P + 1, np.array(same)


def wilson(errors: int, trials: int) -> tuple[float, float]:
    """Returns Wilson's limits for `trials` independent trials, with the t quantile of trials - 1 degrees of freedom."""
    z, rate = float(stdtrit(trials - 1, 0.975)), errors / trials
    middle, spread = rate + z * z / (2 * trials), z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return (middle - spread) / (1 + z * z / trials), (middle + spread) / (1 + z * z / trials)


def test_points_are_counted_pair_by_pair():
    random = np.random.default_rng(0)
    same = [True] * 150 + [False] * 400
    scores = [*np.clip(random.normal(0.5, 0.2, 150), -1, 1), *np.clip(random.normal(0, 0.2, 400), -1, 1)]
    result = verify_pairs(*pairs_of(scores, same), unit=True)
    assert (result.mated, result.nonmated, result.people) == (150, 400, 950)
    assert [figures.point.wanted for figures in result.points] == list(PAIR_FARS)
    assert [figures.point.reason is None for figures in result.points] == [False, False, True, True]
    for figures in result.points[:2]:
        assert "non-mated comparisons; there are 400" in figures.point.reason
        assert figures.tar_limits is figures.far_limits is None
    wrong = sorted(scores[150:], reverse=True)
    for figures, allowed in zip(result.points[2:], (4, 40), strict=True):
        accepted = [score for score in scores[:150] if score > wrong[allowed]]
        assert figures.point.false_matches == allowed
        assert figures.point.fmr == allowed / 400
        assert figures.point.tar == pytest.approx(len(accepted) / 150, abs=1e-12)
        assert figures.point.threshold == pytest.approx(wrong[allowed], abs=1e-5)
        assert figures.point.supported == (allowed >= 30)
        # No two pairs share a person, so all trials are independent.
        low, high = wilson(150 - len(accepted), 150)
        assert figures.tar_limits == pytest.approx((1 - high, 1 - low), abs=2e-3)
        assert figures.far_limits[0] < figures.point.fmr < figures.far_limits[1]


def test_limits_widen_where_few_people_make_the_pairs():
    """Equal scores, but the mated pairs are of ten people, each with only matches or only misses."""
    same = [True] * 100 + [False] * 100
    scores = [0.8] * 80 + [-0.5] * 20 + [0.1 * (pair % 3) for pair in range(100)]
    embedding_ND, left_P, right_P, same_P = pairs_of(scores, same)
    alone = verify_pairs(embedding_ND, left_P, right_P, same_P, unit=True)
    # Ten pairs each share their left image: all left images are equal.
    together_P = np.where(same_P, 2 * (np.arange(200) // 10 * 10), left_P)
    few = verify_pairs(embedding_ND, together_P, right_P, same_P, unit=True)
    assert (alone.people, few.people) == (300, 210)
    assert few.ten_fold.mean == alone.ten_fold.mean
    many_people, few_people = alone.points[-1], few.points[-1]
    assert many_people.point == few_people.point
    assert many_people.point.tar == pytest.approx(0.8)
    width, wider = (limits[1] - limits[0] for limits in (many_people.tar_limits, few_people.tar_limits))
    assert wider > 2.5 * width


def test_people_are_what_mated_pairs_join():
    person_U = connected_identities(7, np.array([0, 1, 4, 6]), np.array([1, 2, 5, 6]))
    groups = [{image for image in range(7) if person_U[image] == person} for person in dict.fromkeys(person_U)]
    assert groups == [{0, 1, 2}, {3}, {4, 5}, {6}]


def test_a_pair_of_the_same_image_and_a_contradiction_are_counted():
    embedding_ND, left_P, right_P, same_P = pairs_of([0.9, 0.9, 0.1] * 10, [True, True, False] * 10)
    left_P[2], right_P[2] = left_P[0], right_P[0]  # called two people here, one in the first pair
    right_P[1] = left_P[1]
    result = verify_pairs(embedding_ND, left_P, right_P, same_P, unit=True)
    assert (result.mated, result.nonmated, result.people) == (20, 10, 38)
    figures = result.points[-1]
    assert (figures.point.false_matches, figures.point.fmr, figures.point.tar) == (1, 0.1, 1.0)
    assert figures.far_limits[0] < 0.1 < figures.far_limits[1]


def test_what_is_not_of_unit_length_is_scored_by_its_inner_product():
    """Inner products depend on the length: pairs scaled down no longer match."""
    embedding_ND, left_P, right_P, same_P = pairs_of([0.9] * 20 + [0.2] * 20, [True] * 20 + [False] * 20)
    embedding_ND[left_P[:10]] *= 0.1
    unit = verify_pairs(embedding_ND, left_P, right_P, same_P, unit=True)
    plain = verify_pairs(embedding_ND, left_P, right_P, same_P, unit=False)
    assert unit.points[-1].point.tar == 1
    assert plain.points[-1].point.tar == 0.5
    assert plain.points[-1].point.threshold == pytest.approx(0.2, abs=1e-5)


def test_long_vectors_have_scores_beyond_one():
    embedding_ND, left_P, right_P, same_P = pairs_of([0.9] * 20 + [0.2] * 20, [True] * 20 + [False] * 20)
    result = verify_pairs(50 * embedding_ND, left_P, right_P, same_P, unit=False)
    assert result.points[-1].point.tar == 1
    assert result.points[-1].point.threshold == pytest.approx(500, rel=1e-4)


def test_too_few_pairs_and_useless_embeddings_are_refused():
    with pytest.raises(UserError, match="there are 9 pairs, fewer than the 10 folds"):
        verify_pairs(*pairs_of([0.5] * 9, [True, False, True] * 3), unit=True)
    for same, missing in ((True, "non-mated"), (False, "mated")):
        with pytest.raises(UserError, match=f"none of the 12 pairs is {missing}; accuracy needs mated and non-mated"):
            verify_pairs(*pairs_of([0.5] * 12, [same] * 12), unit=True)
    embedding_ND, *pairs = pairs_of([0.5] * 12, [True, False] * 6)
    for value in (0.0, np.nan, np.inf):
        embedding_ND[7] = value
        with pytest.raises(UserError, match="pair 3: an embedding is not finite or is zero"):
            verify_pairs(embedding_ND, *pairs, unit=True)
