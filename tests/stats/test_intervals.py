"""Intervals of clustered rates against a leave-one-out loop, Wilson's equation, and published examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from facelt.stats.intervals import ClusteredCounts, rate_intervals, wilson_limits


def searches(seed: int, figures: int = 2, identities: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    trial_FI = random.integers(1, 30, (figures, identities))
    return random.binomial(trial_FI, random.beta(1, 4, identities)), trial_FI


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_equals_a_leave_one_out_loop(seed):
    error_FI, trial_FI = searches(seed)
    result = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.9)
    for f, (error_I, trial_I) in enumerate(zip(error_FI.tolist(), trial_FI.tolist(), strict=True)):
        rate, n = sum(error_I) / sum(trial_I), len(trial_I)
        without = [(sum(error_I) - error_I[i]) / (sum(trial_I) - trial_I[i]) for i in range(n)]
        variance = (n - 1) / n * sum((left_out - rate) ** 2 for left_out in without)
        if variance == 0:
            continue
        effective = min(rate * (1 - rate) / variance, sum(trial_I))
        square, fourth = (sum((left_out - rate) ** power for left_out in without) for power in (2, 4))
        seen = 2 * square**2 / (fourth - square**2 / n)
        dof = max(min(sum(trial_I) ** 2 / sum(t * t for t in trial_I) - 1, seen), 1)
        t = stats.t.ppf(0.95, dof)
        # Wilson's limits solve (p - rate)^2 = t^2 p (1 - p) / n.
        a, b, c = 1 + t * t / effective, -2 * rate - t * t / effective, rate * rate
        limits = [(-b - np.sqrt(b * b - 4 * a * c)) / (2 * a), (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)]
        np.testing.assert_allclose([result.low_F[f], result.high_F[f]], limits, rtol=1e-9, atol=1e-12)
        assert result.effective_F[f] == pytest.approx(effective)
        assert result.identities_F[f] == n


def test_independent_trials_are_all_effective():
    error_I = np.repeat([1, 0], [30, 170])
    result = rate_intervals(ClusteredCounts.by_identity(error_I, np.ones(200)), level=0.95)
    low, high = stats.binomtest(30, 200).proportion_ci(0.95, "wilson")
    assert result.effective_F[0] == pytest.approx(199, rel=0.01)
    assert result.low_F[0] == pytest.approx(low, abs=0.002)
    assert result.high_F[0] == pytest.approx(high, abs=0.002)


def test_fully_correlated_trials_count_once_per_identity():
    result = rate_intervals(ClusteredCounts.by_identity(np.tile([0, 50], 20), np.full(40, 50)), level=0.95)
    assert result.effective_F[0] == pytest.approx(39, rel=0.03)
    assert result.high_F[0] - result.low_F[0] > 0.28


def test_no_more_effective_trials_than_trials():
    # Every identity at exactly the same rate: no variance between them, but 40 trials are no more than 40.
    result = rate_intervals(ClusteredCounts.by_identity(np.full(10, 1), np.full(10, 4)), level=0.95)
    assert result.effective_F[0] <= 40
    assert result.low_F[0] < 0.25 < result.high_F[0]


def test_upper_limit_without_errors_accounts_for_correlation():
    alone = rate_intervals(ClusteredCounts.by_identity(np.zeros(8), np.full(8, 100)), level=0.95)
    t = stats.t.ppf(0.975, 7)
    assert alone.effective_F[0] == pytest.approx(8)  # no evidence that trials of one identity differ
    assert (alone.low_F[0], alone.high_F[0]) == (0, pytest.approx(t * t / (8 + t * t)))
    independent = np.array([np.zeros(8), [2, 3, 2, 1, 2, 3, 2, 1]])
    beside = rate_intervals(ClusteredCounts.by_identity(independent, np.full((2, 8), 100)), level=0.95)
    assert beside.effective_F[0] == pytest.approx(800)
    assert beside.high_F[0] == pytest.approx(t * t / (800 + t * t))
    alike = np.array([np.zeros(8), [0, 0, 100, 0, 0, 100, 0, 0]])
    beside = rate_intervals(ClusteredCounts.by_identity(alike, np.full((2, 8), 100)), level=0.95)
    assert beside.effective_F[0] == pytest.approx(8, rel=0.2)


def test_all_errors_mirror_no_errors():
    none = rate_intervals(ClusteredCounts.by_identity(np.zeros(5), np.arange(1, 6)), level=0.9)
    all_ = rate_intervals(ClusteredCounts.by_identity(np.arange(1, 6), np.arange(1, 6)), level=0.9)
    assert all_.low_F[0] == pytest.approx(1 - none.high_F[0])
    assert all_.high_F[0] == 1


def test_one_identity_or_none_has_a_rate_but_no_limits():
    result = rate_intervals(ClusteredCounts.by_identity([[3, 0, 0], [0, 0, 0]], [[4, 0, 0], [0, 0, 0]]), level=0.95)
    assert result.rate_F[0] == 0.75
    assert np.isnan(result.rate_F[1])
    assert np.isnan([result.low_F, result.high_F]).all()


def test_difference_of_disjoint_identities_is_newcombes():
    # Newcombe 1998, table II, method 10, example (a): 56/70 and 48/80 give 0.0524 to 0.3339.
    low_F, high_F = wilson_limits(
        np.array([56 / 70, 48 / 80]), np.array([70.0, 80.0]), np.full(2, stats.norm.ppf(0.975))
    )
    error_FI = np.zeros((2, 150))
    error_FI[0, :56] = error_FI[1, 70:118] = 1
    trial_FI = np.zeros((2, 150))
    trial_FI[0, :70] = trial_FI[1, 70:] = 1
    result = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95)
    assert result.difference(0, 1) == pytest.approx((0.0524, 0.3339), abs=0.005)
    assert (result.low_F[0], result.high_F[0]) == pytest.approx((low_F[0], high_F[0]), abs=0.005)
    low, high = result.difference(1, 0)
    assert (-high, -low) == pytest.approx(result.difference(0, 1))


def test_difference_to_itself_is_zero_and_to_a_similar_rate_small():
    error_FI, trial_FI = searches(4, figures=1, identities=30)
    twice = np.repeat(error_FI, 2, axis=0), np.repeat(trial_FI, 2, axis=0)
    result = rate_intervals(ClusteredCounts.by_identity(*twice), level=0.95)
    low, high = result.difference(0, 1)
    assert low <= 0 <= high
    assert high - low < 0.3 * (result.high_F[0] - result.low_F[0])
    low, high = result.ratio(0, 1)
    assert 0.9 < low <= 1 <= high < 1.1


def test_two_rates_of_the_same_people_by_hand():
    error_FI = np.array([[2, 5, 1, 3, 4, 0], [1, 4, 1, 1, 3, 0]])
    result = rate_intervals(ClusteredCounts.by_identity(error_FI, np.full((2, 6), 10)), level=0.95)
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
    assert result.difference(0, 1)[0] == pytest.approx(difference_I.mean() - (joined + half) / 2)


def test_ratio_contains_the_quotient_and_inverts():
    error_FI, trial_FI = searches(1, identities=20)
    result = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95)
    low, high = result.ratio(0, 1)
    assert 0 < low < result.rate_F[0] / result.rate_F[1] < high
    assert result.ratio(1, 0) == pytest.approx((1 / high, 1 / low))


def test_ratio_to_a_group_without_errors_has_one_limit_only():
    result = rate_intervals(ClusteredCounts.by_identity([[0] * 6, [1, 2, 1, 1, 0, 3]], np.full((2, 6), 9)), level=0.95)
    low, high = result.ratio(1, 0)
    assert low == pytest.approx(result.low_F[1] / result.high_F[0])
    assert high == float("inf")
    assert result.ratio(0, 1) == pytest.approx((0, 1 / low))
    assert np.isnan(result.ratio(0, 0)).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="level 0"):
        rate_intervals(ClusteredCounts.by_identity([1], [1]), level=0)
    with pytest.raises(ValueError, match=r"errors are \[1, 2\]"):
        ClusteredCounts.by_identity([1, 1], [1])
    with pytest.raises(ValueError, match="between 0 and the trials"):
        ClusteredCounts.by_identity([2], [1])
