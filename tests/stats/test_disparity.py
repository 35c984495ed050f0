"""Disparity measures by hand and against double loops; bounds and notes if a group has no error."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.stats import disparity
from facelt.stats.differences import RateDifferences
from facelt.stats.disparity import (
    DISPARITY_MEASURES,
    GroupErrors,
    zero_error_bound,
)
from facelt.stats.intervals import ClusteredCounts, rate_intervals


def from_counts(name, *errors, **options):
    return DISPARITY_MEASURES[name].from_counts(*errors, **options)


RATES = st.lists(st.floats(1e-6, 1), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(RATES, st.floats(0, 1), st.data())
def test_equal_plain_loops(fmr, alpha, data):
    fnmr = data.draw(st.lists(st.floats(1e-6, 1), min_size=len(fmr), max_size=len(fmr)))
    n = len(fmr)

    def differences(x):
        return [abs(a - b) for a in x for b in x]

    def gini(x):
        return n / (n - 1) * sum(differences(x)) / (2 * n * n * (sum(x) / n))

    assert disparity.gap(fmr) == pytest.approx(max(differences(fmr)))
    assert disparity.ratio(fmr) == pytest.approx(max(a / b for a in fmr for b in fmr))
    assert disparity.max_over_geometric_mean(fmr) == pytest.approx(max(fmr) / prod(fmr) ** (1 / n))
    assert disparity.gini(fmr) == pytest.approx(gini(fmr), abs=1e-12)
    assert disparity.fairness_discrepancy_rate(fmr, fnmr, alpha) == pytest.approx(
        1 - (alpha * max(differences(fmr)) + (1 - alpha) * max(differences(fnmr)))
    )
    assert disparity.inequity_rate(fmr, fnmr, alpha) == pytest.approx(
        (max(fmr) / min(fmr)) ** alpha * (max(fnmr) / min(fnmr)) ** (1 - alpha)
    )
    assert disparity.garbe(fmr, fnmr, alpha) == pytest.approx(alpha * gini(fmr) + (1 - alpha) * gini(fnmr), abs=1e-12)


def test_by_hand():
    # FMR 1% and 4%, FNMR 10% and 20%.
    fmr, fnmr = [0.01, 0.04], [0.1, 0.2]
    assert disparity.gap(fnmr) == pytest.approx(0.1)
    assert disparity.ratio(fmr) == pytest.approx(4)
    assert disparity.max_over_geometric_mean(fmr) == pytest.approx(0.04 / 0.02)
    assert disparity.gini(fmr) == pytest.approx(0.03 / 0.05)  # of two groups: their difference over their sum
    assert disparity.fairness_discrepancy_rate(fmr, fnmr, 0.5) == pytest.approx(1 - 0.5 * 0.03 - 0.5 * 0.1)
    assert disparity.inequity_rate(fmr, fnmr, 0.5) == pytest.approx(np.sqrt(4 * 2))
    assert disparity.garbe(fmr, fnmr, 0.5) == pytest.approx(0.5 * 0.6 + 0.5 / 3)


def test_gini_range():
    assert disparity.gini([0.2, 0.2, 0.2]) == pytest.approx(0)
    assert disparity.gini([0.0, 0.0, 0.0, 0.3]) == pytest.approx(1)


def test_replicates_are_vectorised():
    rate_RG = np.random.default_rng(0).uniform(0.01, 0.9, (5, 4))
    for figure in (disparity.gap, disparity.ratio, disparity.max_over_geometric_mean, disparity.gini):
        np.testing.assert_allclose(figure(rate_RG), [float(figure(rate_G)) for rate_G in rate_RG])


def test_zero_error_bound_solves_wilsons_equation():
    # Wilson's limit p solves (p - 0)^2 = z^2 p (1 - p) / n.
    p = zero_error_bound(100, 0.95)
    assert p**2 == pytest.approx(1.959963985**2 * p * (1 - p) / 100)
    assert zero_error_bound(1000) == pytest.approx(3.84 / 1000, rel=0.01)


def test_counts_with_errors_give_the_measure_of_the_rates():
    false_match = GroupErrors(("f", "m"), [1, 8], [100, 200])
    false_non_match = GroupErrors(("f", "m"), [10, 40], [100, 200])
    assert from_counts("ratio", false_match).value == pytest.approx(4)
    assert not from_counts("ratio", false_match).at_least
    assert from_counts("gap", false_non_match).value == pytest.approx(0.1)
    assert from_counts("max_over_geometric_mean", false_match).value == pytest.approx(2)
    assert from_counts("gini", false_match).value == pytest.approx(0.6)
    assert from_counts("inequity", false_match, false_non_match).value == pytest.approx(np.sqrt(8))
    assert from_counts("garbe", false_match, false_non_match).value == pytest.approx(0.3 + 0.5 / 3)
    assert from_counts("fdr", false_match, false_non_match).value == pytest.approx(1 - 0.015 - 0.05)


def test_a_group_without_errors_gives_a_bound():
    errors = GroupErrors(("f", "m", "x"), [0, 50, 100], [1000, 1000, 1000], kind="false match")
    upper = 3.8415 / 1003.8415
    result = from_counts("ratio", errors)
    assert result.at_least
    assert result.value == pytest.approx(0.1 / upper, rel=1e-4)
    assert "no false match in f" in result.note
    result = from_counts("max_over_geometric_mean", errors)
    assert result.at_least
    assert result.value == pytest.approx(0.1 / (upper * 0.05 * 0.1) ** (1 / 3), rel=1e-4)
    # With clustered trials fewer independent ones stand behind the bound, which is then weaker.
    clustered = GroupErrors(
        ("f", "m", "x"), [0, 50, 100], [1000, 1000, 1000], upper_G=zero_error_bound(50) * np.ones(3)
    )
    assert from_counts("ratio", clustered).value < from_counts("ratio", errors).value / 10
    assert from_counts("gap", errors).value == pytest.approx(0.1)
    assert not from_counts("gap", errors).at_least
    fnmr = GroupErrors(("f", "m", "x"), [100, 100, 200], [1000, 1000, 1000])
    result = from_counts("inequity", errors, fnmr, alpha=0.25)
    assert result.at_least
    assert result.value == pytest.approx((0.1 / upper) ** 0.25 * 2**0.75, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 300))
def test_the_bound_is_below_the_value_for_any_true_rates_and_reached(share, other_share, trials):
    # Two groups without errors, whose upper limits may lie above or below the other groups' rates.
    errors = GroupErrors(("a", "b", "c", "d"), [0, 0, 3, 8], [trials, 2 * trials, 100, 100], kind="false match")
    fnmr = GroupErrors(("a", "b", "c", "d"), [30, 10, 20, 40], [100, 100, 100, 100])
    upper = errors.upper_G
    unseen = [max(part * upper[g], 1e-9) for g, part in enumerate((share, other_share))]
    for name, figure in (
        ("ratio", disparity.ratio),
        ("max_over_geometric_mean", disparity.max_over_geometric_mean),
        ("gini", disparity.gini),
    ):
        result = from_counts(name, errors)
        assert result.at_least
        assert "no false match in a, b" in result.note
        assert result.value <= figure([*unseen, 0.03, 0.08]) * (1 + 1e-12) + 1e-12
        axes = (np.minimum(np.linspace(1e-4, 0.12, 40), upper[g]) for g in (0, 1))
        grid = np.stack(np.meshgrid(*axes, [0.03], [0.08]), axis=-1)
        assert result.value == pytest.approx(figure(grid).min(), rel=0.05, abs=0.02)
    for name, figure in (("inequity", disparity.inequity_rate), ("garbe", disparity.garbe)):
        result = from_counts(name, errors, fnmr)
        assert result.at_least
        value = figure([*unseen, 0.03, 0.08], fnmr.rates(np.ones(4, dtype=bool)))
        assert result.value <= value * (1 + 1e-12) + 1e-12


def intervals_of(error_GI, trial_GI, level=0.95):
    return rate_intervals(ClusteredCounts.by_identity(error_GI, trial_GI), level=level)


def groups_of(rates, people=6, trials=50, seed=0):
    """Intervals of groups of different people with these error rates."""
    random = np.random.default_rng(seed)
    member_GI = np.repeat(np.eye(len(rates), dtype=int), people, axis=1)
    return intervals_of(random.binomial(trials * member_GI, np.asarray(rates)[:, None]), trials * member_GI)


def test_limits_of_two_groups_are_those_of_their_difference_and_ratio():
    intervals = groups_of((0.1, 0.5))
    pair = RateDifferences.between(intervals, [1], [0])
    (low,), (high,) = pair.limits(0.95)
    (ratio_low,), (ratio_high,) = pair.ratio_limits(0.95)

    def limits(name, count=1):
        return DISPARITY_MEASURES[name].limits([(intervals, (0, 1))] * count, level=0.95, alpha=0.5)

    assert limits("gap") == pytest.approx((low, high))
    assert limits("ratio") == pytest.approx((ratio_low, ratio_high))
    assert limits("max_over_geometric_mean") == pytest.approx((np.sqrt(ratio_low), np.sqrt(ratio_high)))
    assert limits("gini") == pytest.approx([(end - 1) / (end + 1) for end in (ratio_low, ratio_high)])
    # Both kinds of the joint measures at half the error share.
    (low,), (high,) = pair.limits(0.975)
    (ratio_low,), (ratio_high,) = pair.ratio_limits(0.975)
    assert limits("fdr", 2) == pytest.approx((1 - high, 1 - low))
    assert limits("inequity", 2) == pytest.approx((ratio_low, ratio_high))
    assert limits("garbe", 2) == pytest.approx([(end - 1) / (end + 1) for end in (ratio_low, ratio_high)])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0.02, 0.98), min_size=2, max_size=5), st.integers(0, 1000))
def test_limits_contain_the_measure_and_are_those_of_all_pairs(rates, seed):
    intervals = groups_of(rates, seed=seed)
    figures = tuple(range(len(rates)))
    pairs = [(a, b) for a in figures for b in figures if a != b]
    of_pair = 1 - 0.05 / (len(pairs) / 2)
    ends = np.array([RateDifferences.between(intervals, [a], [b]).limits(of_pair) for a, b in pairs])[:, :, 0]
    result = DISPARITY_MEASURES["gap"].limits([(intervals, figures)], level=0.95, alpha=0.5)
    assert result == pytest.approx((max(ends[:, 0].max(), 0), ends[:, 1].max()))
    for measure in DISPARITY_MEASURES.values():
        if not measure.is_joint and (intervals.rate_F > 0).all():
            low, high = measure.limits([(intervals, figures)], level=0.95, alpha=0.5)
            assert low <= float(measure.from_rates(intervals.rate_F)) * (1 + 1e-12) + 1e-12
            assert float(measure.from_rates(intervals.rate_F)) <= high * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("rates", [(0.0, 0.5, 0.0), (0.0, 0.5), (0.2, 0.0, 0.5)])
def test_a_group_without_errors_has_no_upper_limit_of_ratios(rates):
    intervals = groups_of(rates)
    for name in ("ratio", "max_over_geometric_mean", "gini"):
        low, high = DISPARITY_MEASURES[name].limits([(intervals, range(len(rates)))], level=0.95, alpha=0.5)
        assert np.isfinite(low)
        assert high <= 1 if name == "gini" else high == np.inf
    assert len(rates) > 2 or high == pytest.approx(1)


def test_undefined_disparities_have_a_note():
    nothing = GroupErrors(("f", "m"), [0, 0], [10, 10], kind="false match")
    some = GroupErrors(("f", "m"), [1, 2], [10, 10])
    assert from_counts("ratio", nothing).value is None
    assert from_counts("ratio", nothing).note == "no group has a false match"
    assert from_counts("gap", nothing).value == 0
    for name in ("inequity", "garbe"):
        assert from_counts(name, nothing, some).value is None
        assert from_counts(name, some, nothing).value is None
    alone = GroupErrors(("f", "m"), [1, 0], [10, 0])
    for name in ("gap", "ratio", "gini", "max_over_geometric_mean"):
        assert from_counts(name, alone).value is None
        assert "fewer than two groups" in from_counts(name, alone).note
    assert from_counts("fdr", alone, some).value is None


def test_bad_arguments():
    with pytest.raises(ValueError, match="alpha 2"):
        disparity.garbe([0.1, 0.2], [0.1, 0.2], 2)
    with pytest.raises(ValueError, match="two groups"):
        disparity.gap([0.1])
    with pytest.raises(ValueError, match="between 0 and its trials"):
        GroupErrors(("a", "b"), [2, 0], [1, 1])
    with pytest.raises(ValueError, match="3 groups"):
        GroupErrors(("a", "b", "c"), [2, 0], [2, 1])
    with pytest.raises(ValueError, match="different groups"):
        from_counts("garbe", GroupErrors(("a", "b"), [1, 1], [2, 2]), GroupErrors(("a", "c"), [1, 1], [2, 2]))
    with pytest.raises(ValueError, match="level"):
        zero_error_bound(3, 1)
