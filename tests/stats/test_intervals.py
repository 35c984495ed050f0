"""Intervals of clustered rates against a leave-one-out loop, and Wilson's equation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from facelt.stats.intervals import ClusteredCounts, rate_intervals


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
    none = ClusteredCounts.by_identity(np.zeros(8), np.full(8, 100))
    independent = ClusteredCounts.by_identity([2, 3, 2, 1, 2, 3, 2, 1], np.full(8, 100))
    result = rate_intervals(none, level=0.95, pooled=independent)
    assert result.effective_F[0] == pytest.approx(800)
    assert result.high_F[0] == pytest.approx(t * t / (800 + t * t))
    alike = ClusteredCounts.by_identity([0, 0, 100, 0, 0, 100, 0, 0], np.full(8, 100))
    assert rate_intervals(none, level=0.95, pooled=alike).effective_F[0] == pytest.approx(8, rel=0.2)
    # A figure with errors has its own correlation.
    np.testing.assert_array_equal(
        rate_intervals(independent, level=0.95, pooled=alike).high_F, rate_intervals(independent, level=0.95).high_F
    )


def test_a_figure_has_the_same_limits_among_any_others():
    error_FI = np.array([[0, 0, 0, 0, 0], [1, 4, 0, 2, 9], [9, 9, 9, 9, 9], [0, 9, 9, 0, 0]])
    trial_FI = np.full((4, 5), 9)
    pooled = ClusteredCounts.by_identity(error_FI.sum(axis=0), trial_FI.sum(axis=0))
    together = rate_intervals(ClusteredCounts.by_identity(error_FI, trial_FI), level=0.95, pooled=pooled)
    for f in range(4):
        alone = rate_intervals(ClusteredCounts.by_identity(error_FI[f], trial_FI[f]), level=0.95, pooled=pooled)
        assert (alone.low_F[0], alone.high_F[0]) == (together.low_F[f], together.high_F[f])
    each = rate_intervals(
        ClusteredCounts.by_identity(error_FI, trial_FI),
        level=0.95,
        pooled=ClusteredCounts.by_identity(error_FI[[1, 1, 3, 3]], trial_FI),
    )
    assert 1 - each.low_F[2] > each.high_F[0]


def test_another_level_is_that_of_a_new_call():
    counts = ClusteredCounts.by_identity(*searches(3))
    result, expected = rate_intervals(counts, level=0.95).at_level(0.8), rate_intervals(counts, level=0.8)
    np.testing.assert_array_equal([result.low_F, result.high_F], [expected.low_F, expected.high_F])
    assert result.level == 0.8


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


def test_bad_arguments():
    with pytest.raises(ValueError, match="level 0"):
        rate_intervals(ClusteredCounts.by_identity([1], [1]), level=0)
    with pytest.raises(ValueError, match=r"errors are \[1, 2\]"):
        ClusteredCounts.by_identity([1, 1], [1])
    with pytest.raises(ValueError, match="between 0 and the trials"):
        ClusteredCounts.by_identity([2], [1])
