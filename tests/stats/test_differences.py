"""Limits of differences and ratios by hand, p-values by inversion of these limits, the smallest p of N people."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from facelt.stats.differences import RateDifferences
from facelt.stats.intervals import ClusteredCounts, rate_intervals, wilson_limits


def between(error_FI, trial_FI, first=0, second=1):
    intervals = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95)
    return RateDifferences.between(intervals, [first], [second])


def limits(error_FI, trial_FI, first=0, second=1, level=0.95, of="limits"):
    low_K, high_K = getattr(between(error_FI, trial_FI, first, second), of)(level)
    return float(low_K[0]), float(high_K[0])


def disjoint(error_I, trial_I, other_error_I, other_trial_I):
    """Counts of two groups of different people, [2,I]."""
    return (
        np.stack([np.r_[error_I, 0 * other_error_I], np.r_[0 * error_I, other_error_I]]),
        np.stack([np.r_[trial_I, 0 * other_trial_I], np.r_[0 * trial_I, other_trial_I]]),
    )


def two_rates(seed, *, shared, people=(2, 30)):
    random = np.random.default_rng(seed)
    n, m = random.integers(*people, 2)
    trial_I, other_trial_I = random.integers(1, 20, n), random.integers(1, 20, m)
    person_I = random.beta(1, 4, n)
    error_I = random.binomial(trial_I, person_I)
    if shared:
        return np.stack([error_I, random.binomial(trial_I, random.uniform(0, 1) * person_I)]), np.stack([trial_I] * 2)
    return disjoint(error_I, trial_I, random.binomial(other_trial_I, random.beta(1, 2, m)), other_trial_I)


def test_difference_of_disjoint_identities_is_newcombes():
    # Newcombe 1998, table II, method 10, example (a): 56/70 and 48/80 give 0.0524 to 0.3339.
    low_F, high_F = wilson_limits(
        np.array([56 / 70, 48 / 80]), np.array([70.0, 80.0]), np.full(2, stats.norm.ppf(0.975))
    )
    ones = np.ones(150)
    counts = disjoint(1 * (np.arange(70) < 56), ones[:70], 1 * (np.arange(80) < 48), ones[:80])
    result = rate_intervals(ClusteredCounts.by_identity(*counts), level=0.95)
    assert limits(*counts) == pytest.approx((0.0524, 0.3339), abs=0.005)
    assert (result.low_F[0], result.high_F[0]) == pytest.approx((low_F[0], high_F[0]), abs=0.005)
    low, high = limits(*counts, first=1, second=0)
    assert (-high, -low) == pytest.approx(limits(*counts))


def test_difference_to_itself_is_zero():
    error_FI, trial_FI = two_rates(4, shared=True, people=(30, 31))
    same = np.stack([error_FI[0]] * 2), trial_FI
    result = rate_intervals(ClusteredCounts.by_identity(*same), level=0.95)
    low, high = limits(*same)
    assert low <= 0 <= high
    assert high - low < 0.3 * (result.high_F[0] - result.low_F[0])
    assert between(*same).p_values()[0] == 1
    low, high = limits(*same, of="ratio_limits")
    assert 0.9 < low <= 1 <= high < 1.1


def test_two_rates_of_the_same_people_by_hand():
    error_FI = np.array([[2, 5, 1, 3, 4, 0], [1, 4, 1, 1, 3, 0]])
    trial_FI = np.full((2, 6), 10)
    result = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95)
    a_I, b_I = result.influence_FI
    correlation = (a_I * b_I).sum() / np.sqrt((a_I**2).sum() * (b_I**2).sum())
    fall = result.rate_F[0] - result.low_F[0]
    rise = result.high_F[1] - result.rate_F[1]
    joined = np.sqrt(fall**2 + rise**2 - 2 * correlation * fall * rise)
    # Ten searches each: the rates' difference is the mean of the people's, whose jackknife is the usual deviation.
    difference_I = (error_FI[0] - error_FI[1]) / 10
    dof = [5.0]
    for value_I in (error_FI[0], error_FI[1], difference_I):
        square_I = (value_I - value_I.mean()) ** 2
        dof.append(2 * square_I.sum() ** 2 / ((square_I**2).sum() - square_I.sum() ** 2 / 6))
    half = stats.t.ppf(0.975, min(dof)) * difference_I.std(ddof=1) / np.sqrt(6)
    assert limits(error_FI, trial_FI)[0] == pytest.approx(difference_I.mean() - (joined + half) / 2)


def test_ratio_contains_the_quotient_and_inverts():
    counts = two_rates(1, shared=True, people=(20, 21))
    low, high = limits(*counts, of="ratio_limits")
    rate_F = counts[0].sum(axis=1) / counts[1].sum(axis=1)
    assert 0 < low < rate_F[0] / rate_F[1] < high
    assert limits(*counts, 1, 0, of="ratio_limits") == pytest.approx((1 / high, 1 / low))


def test_ratio_to_a_group_without_errors_has_one_limit_only():
    counts = np.array([[0] * 6, [1, 2, 1, 1, 0, 3]]), np.full((2, 6), 9)
    result = rate_intervals(ClusteredCounts.by_identity(*counts), level=0.95)
    low, high = limits(*counts, 1, 0, of="ratio_limits")
    assert low == pytest.approx(result.low_F[1] / result.high_F[0])
    assert high == float("inf")
    assert limits(*counts, 0, 1, of="ratio_limits") == pytest.approx((0, 1 / low))
    assert np.isnan(limits(*counts, 0, 0, of="ratio_limits")).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.floats(0.5, 0.9999))
def test_limits_exclude_zero_exactly_if_p_is_below_one_minus_their_level(seed, shared, level):
    pair = between(*two_rates(seed, shared=shared))
    p = float(pair.p_values()[0])
    for tested in (level, 1 - p * 1.001, 1 - p * 0.999):
        if 0 < tested < 1:
            low_K, high_K = pair.limits(tested)
            assert bool(low_K[0] > 0 or high_K[0] < 0) == (p < 1 - tested)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_limits_of_a_higher_level_contain_those_of_a_lower_one(seed, shared):
    pair = between(*two_rates(seed, shared=shared))
    low_L, high_L = np.array([pair.limits(level) for level in np.linspace(0.05, 0.999, 25)])[:, :, 0].T
    assert (np.diff(low_L) <= 1e-7).all()
    assert (np.diff(high_L) >= -1e-7).all()


def test_p_of_single_trials_is_that_of_newcombes_limits_by_a_plain_search():
    error_FI, trial_FI = disjoint(
        1 * (np.arange(30) < 20), np.ones(30, dtype=int), 1 * (np.arange(40) < 14), np.ones(40, dtype=int)
    )
    intervals = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95)

    def lowest(error):
        low, high = np.empty(2), np.empty(2)
        for f in (0, 1):
            t = stats.t.ppf(1 - error / 2, intervals.dof_F[f])
            n, r = intervals.effective_F[f], intervals.rate_F[f]
            roots = np.roots([1 + t * t / n, -2 * r - t * t / n, r * r])
            low[f], high[f] = min(roots), max(roots)
        rate = intervals.rate_F
        return rate[0] - rate[1] - np.hypot(rate[0] - low[0], high[1] - rate[1])

    errors = np.linspace(0.001, 0.05, 491)
    first = next(error for error in errors if lowest(error) > 0)
    assert between(error_FI, trial_FI).p_values()[0] == pytest.approx(first, abs=1.1e-4)


def test_smallest_p_is_that_of_people_who_all_fail_or_never():
    for n, m in ((5, 5), (7, 4), (14, 14)):
        most = disjoint(np.full(n, 50), np.full(n, 50), np.zeros(m, dtype=int), np.full(m, 50))
        pair = between(*most)
        assert pair.p_values()[0] == pytest.approx(pair.smallest_p()[0])
        # The limits at 1 - p just touch 0: t^2 / (n + t^2) is Wilson's limit of n people without an error.
        square = stats.t.ppf(1 - pair.smallest_p()[0] / 2, [n - 1, m - 1]) ** 2
        assert np.hypot(*(square / (np.array([n, m]) + square))) == pytest.approx(1)
    # More photographs are no more people: 5,000 trials of each do not make p smaller.
    spread_I = np.array([-20, -5, 0, 10, 15])
    few = disjoint(4000 + spread_I, np.full(5, 5000), 1000 + spread_I, np.full(5, 5000))
    assert between(*few).p_values()[0] == between(*few).smallest_p()[0] == pytest.approx(0.0255, abs=1e-4)
    assert limits(*few, level=0.95)[0] > 0
    assert limits(*few, level=0.98) == (-1, 1)
    assert limits(*few, level=0.98, of="ratio_limits") == (0, np.inf)


def test_one_identity_or_none_tests_nothing():
    alone = between([[3, 0], [1, 0]], [[4, 0], [4, 0]])
    assert (alone.p_values()[0], alone.smallest_p()[0]) == (1, 1)
    assert np.isnan(alone.limits(0.95)).all()
    assert np.isnan(between([[0, 0], [1, 2]], [[0, 0], [4, 4]]).p_values()).all()


def test_collections_of_pairs_are_their_parts():
    intervals = rate_intervals(
        ClusteredCounts.by_identity([[1, 2, 0, 3], [0, 1, 1, 0], [2, 2, 1, 4]], np.full((3, 4), 9)), level=0.95
    )
    together = RateDifferences.between(intervals, [0, 2, 2], [1, 1, 0])
    parts = RateDifferences.concatenate([together.only([2]), together.only([0, 1])])
    assert len(parts) == 3
    np.testing.assert_array_equal(np.roll(together.p_values(), 1), parts.p_values())
    np.testing.assert_array_equal(np.roll(together.limits(0.9), 1, axis=1), parts.limits(0.9))
