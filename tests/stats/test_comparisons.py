"""Paired differences, contrasts of groups, and the verdicts of all differences of a report: one rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.stats.comparisons import (
    comparison_values,
    decide,
    holm_adjust,
    holm_factors,
    paired_differences,
    pairwise_contrasts,
)
from facelt.stats.differences import RateDifferences
from facelt.stats.groups import Units, search_table
from facelt.stats.intervals import ClusteredCounts, rate_intervals


def models(seed, groups=4, identities=12):
    """Hits of two models and trials of each person in each group, [G,I] each; the models find the same people hard."""
    random = np.random.default_rng(seed)
    trial_GI = random.integers(0, 20, (groups, identities))
    person_I, better_G = random.beta(2, 2, identities), random.uniform(0, 1, groups)[:, None]
    return random.binomial(trial_GI, person_I), random.binomial(trial_GI, person_I**better_G), trial_GI


def test_paired_differences_are_those_of_joint_intervals():
    random = np.random.default_rng(2)
    trial_GI = random.integers(1, 20, (3, 9))
    trial_GI[1, 4:] = 0
    trial_GI[2] = 0
    event_GI, reference_GI = random.binomial(trial_GI, 0.7), random.binomial(trial_GI, 0.5)
    result = paired_differences(reference_GI, event_GI, trial_GI, level=0.9)
    counts = ClusteredCounts.by_identity(np.vstack([reference_GI, event_GI]), np.vstack([trial_GI, trial_GI]))
    joint = rate_intervals(counts, level=0.9)
    for g in (0, 1):
        rate, reference_rate = (count_GI[g].sum() / trial_GI[g].sum() for count_GI in (event_GI, reference_GI))
        low, high = (limit_K[0] for limit_K in RateDifferences.between(joint, [3 + g], [g]).limits(0.9))
        difference = result[g]
        assert (difference.reference_rate, difference.rate, difference.difference) == (
            reference_rate,
            rate,
            rate - reference_rate,
        )
        assert (difference.low, difference.high, difference.identities) == (low, high, (9, 4)[g])
    assert result[0].low < result[0].difference < result[0].high
    assert np.isnan([result[2].rate, result[2].difference, result[2].low, result[2].high]).all()
    assert result[2].identities == 0
    verdict = decide([difference.pair for difference in result], level=0.9)[2]
    assert (verdict.p, verdict.adjusted_p, verdict.smallest_p, verdict.decided) == (None, None, None, False)


def test_paired_differences_are_narrow_if_both_models_fail_on_the_same_people():
    random = np.random.default_rng(0)
    trial_I = np.full(30, 20)
    common_I = random.binomial(18, random.beta(1, 1, 30))
    better_I = common_I + random.integers(1, 3, 30)
    (paired,) = paired_differences(common_I[None], better_I[None], trial_I[None], level=0.95)
    shuffled_I = random.permutation(better_I)
    (other,) = paired_differences(common_I[None], shuffled_I[None], trial_I[None], level=0.95)
    assert paired.difference == pytest.approx(other.difference)
    assert paired.high - paired.low < 0.3 * (other.high - other.low)
    assert paired.low > 0 > other.low
    assert paired.pair.p_values()[0] < 1e-6
    assert other.pair.p_values()[0] > 0.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.8, 0.95, 0.99]))
def test_limits_exclude_zero_if_and_only_if_p_is_below_one_minus_the_level(seed, level):
    differences = paired_differences(*models(seed), level=level)
    verdicts = decide([difference.pair for difference in differences], level=level)
    for difference, verdict in zip(differences, verdicts, strict=True):
        assert bool(difference.low > 0 or difference.high < 0) == (verdict.p < 1 - level)
        assert (verdict.adjusted_low > 0 or verdict.adjusted_high < 0) == (verdict.adjusted_p < 1 - level)
        assert verdict.decided == (verdict.adjusted_p < 1 - level)
        assert verdict.adjusted_low <= difference.low
        assert verdict.adjusted_high >= difference.high
        assert not (verdict.decided and verdict.smallest_p >= 1 - level)
    assert holm_adjust([verdict.p for verdict in verdicts]) == [verdict.adjusted_p for verdict in verdicts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.floats(0, 1), max_size=8), st.floats(0.5, 0.99))
def test_factors_decide_as_the_adjusted_p_values_do(p, level):
    for value, factor, adjusted in zip(p, holm_factors(p, level=level), holm_adjust(p), strict=True):
        assert (value is None) == (factor is None)
        if value is not None:
            assert (value * factor < 1 - level) == (adjusted < 1 - level)


def test_factors_by_hand():
    assert holm_factors([0.01, 0.04, None, 0.03], level=0.95) == [3, 2, None, 2]
    assert holm_factors([0.001, 0.04, None, 0.02], level=0.95) == [3, 1, None, 2]
    assert decide([], level=0.95) == []


def test_holm_by_hand():
    assert holm_adjust([0.01, 0.04, None, 0.03]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
    ]
    assert holm_adjust([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjust([]) == []


def two_groups(people, error_rates, least_identities=2):
    """A table of two groups of `people` people with ten trials each."""
    random = np.random.default_rng(0)
    names = [f"p{i}" for i in range(2 * people)]
    units = Units.from_columns(names, {"hat": ["red"] * people + ["blue"] * people})
    rate_U = np.repeat(error_rates, people)
    # Units are sorted by identity, and so not by number.
    rate_U = rate_U[np.argsort(names)]
    error_U = random.binomial(10, rate_U)
    settings = {"level": 0.95, "least_identities": least_identities}
    return search_table("fnir", error_U, np.full(2 * people, 10), units, units.grouping(["hat"]), **settings)


def test_a_contrast_has_the_higher_rate_first_and_all_values_of_the_report():
    (contrast,) = pairwise_contrasts(two_groups(20, (0.1, 0.7)))
    assert (contrast.first, contrast.second, contrast.identities) == (("blue",), ("red",), 40)
    assert contrast.difference > 0.4
    assert 0 < contrast.low < contrast.difference < contrast.high
    assert 1 < contrast.ratio_low < contrast.ratio < contrast.ratio_high
    (verdict,) = decide([contrast.pair], level=0.95)
    values = comparison_values(contrast, verdict)
    assert values["decided"]
    assert (values["adjusted_low"], values["adjusted_high"]) == (contrast.low, contrast.high)
    assert "pair" not in values
    assert pairwise_contrasts(two_groups(20, (0.1, 0.7), least_identities=21)) == []


def test_few_people_cannot_decide_many_differences():
    (contrast,) = pairwise_contrasts(two_groups(5, (0.0, 1.0)))
    (alone,) = decide([contrast.pair], level=0.95)
    assert alone.decided
    assert alone.p == pytest.approx(alone.smallest_p)
    among_ten = decide([contrast.pair] * 10, level=0.95)
    assert not any(verdict.decided for verdict in among_ten)
    assert [verdict.smallest_p for verdict in among_ten] == [pytest.approx(10 * alone.smallest_p)] * 10
    assert among_ten[0].smallest_p > 0.05
    assert (among_ten[0].adjusted_low, among_ten[0].adjusted_high) == (-1, 1)


def test_groups_that_share_people_are_compared_too():
    units = Units.from_columns([f"p{i}" for i in range(12) for _ in range(2)], {"age": ["old", "young"] * 12})
    error_U, trial_U = np.tile([9, 1], 12), np.full(24, 10)
    table = search_table("fnir", error_U, trial_U, units, units.grouping(["age"]), level=0.95, least_identities=2)
    (contrast,) = pairwise_contrasts(table)
    assert contrast.identities == 12
    (verdict,) = decide([contrast.pair], level=0.95)
    assert verdict.decided
