"""Permutation tests against full enumeration, under the null hypothesis, and under a large difference."""

from dataclasses import astuple
from itertools import combinations, product

import numpy as np
import pytest

from facelt.stats import disparity
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.stats.permutation import (
    holm_adjust,
    nonmated_permutation_test,
    paired_differences,
    paired_permutation_test,
    permutation_test,
    permuted_groups,
)

OPTIONS = {"permutations": 4000, "seed": 0}


def test_gap_equals_an_enumeration():
    error, trial = np.array([9, 7, 8, 2, 1, 4, 3]), np.array([10, 20, 10, 10, 9, 10, 20])

    def gap(first):
        rates = [
            error[part].sum() / trial[part].sum() for part in (list(first), [i for i in range(7) if i not in first])
        ]
        return abs(rates[0] - rates[1])

    seen = gap((0, 1, 2))
    divisions = [gap(first) for first in combinations(range(7), 3)]
    result = permutation_test(error, trial, np.array([0, 0, 0, 1, 1, 1, 1]), **OPTIONS)
    assert result.statistic == pytest.approx(seen)
    assert result.p == pytest.approx(np.mean([d >= seen - 1e-12 for d in divisions]), abs=0.01)


def test_nonmated_gap_equals_an_enumeration():
    random = np.random.default_rng(0)
    trial = np.triu(random.integers(5, 20, (7, 7)), 1)
    error = random.binomial(trial, np.where(np.add.outer(np.arange(7), np.arange(7)) < 6, 0.6, 0.2))
    error, trial = error + error.T, trial + trial.T

    def gap(first):
        parts = [list(first), [i for i in range(7) if i not in first]]
        rates = [
            sum(error[i, j] for i, j in combinations(part, 2)) / sum(trial[i, j] for i, j in combinations(part, 2))
            for part in parts
        ]
        return abs(rates[0] - rates[1])

    seen = gap((0, 1, 2))
    result = nonmated_permutation_test(error, trial, np.array([0, 0, 0, 1, 1, 1, 1]), **OPTIONS)
    assert result.statistic == pytest.approx(seen)
    wanted = np.mean([gap(first) >= seen - 1e-12 for first in combinations(range(7), 3)])
    assert result.p == pytest.approx(wanted, abs=0.012)


def test_paired_test_equals_an_enumeration():
    first, second, trial = np.array([3, 5, 2, 4, 6]), np.array([2, 1, 2, 5, 1]), np.array([9, 9, 9, 9, 9])
    sums = [
        abs(sum(s * (a - b) for s, a, b in zip(signs, first, second, strict=True)))
        for signs in product((-1, 1), repeat=5)
    ]
    result = paired_permutation_test(first, second, trial, **OPTIONS)
    assert result.statistic == pytest.approx(9 / 45)
    assert result.p == pytest.approx(np.mean([s >= 9 for s in sums]), abs=0.02)


def test_paired_differences_are_those_of_joint_intervals_and_of_the_test():
    random = np.random.default_rng(2)
    trial_GI = random.integers(1, 20, (3, 9))
    trial_GI[1, 4:] = 0
    trial_GI[2] = 0
    event_GI, reference_GI = random.binomial(trial_GI, 0.7), random.binomial(trial_GI, 0.5)
    result = paired_differences(reference_GI, event_GI, trial_GI, level=0.9, **OPTIONS)
    counts = ClusteredCounts.by_identity(np.vstack([reference_GI, event_GI]), np.vstack([trial_GI, trial_GI]))
    joint = rate_intervals(counts, level=0.9)
    for g in (0, 1):
        test = paired_permutation_test(event_GI[g], reference_GI[g], trial_GI[g], **OPTIONS)
        rate, reference_rate = (count_GI[g].sum() / trial_GI[g].sum() for count_GI in (event_GI, reference_GI))
        expected = (reference_rate, rate, rate - reference_rate, *joint.difference(3 + g, g), (9, 4)[g], test.p)
        assert astuple(result[g]) == expected
    assert result[0].low < result[0].difference < result[0].high
    assert np.isnan([result[2].rate, result[2].difference, result[2].low, result[2].high]).all()
    assert (result[2].identities, result[2].p) == (0, None)


def test_paired_differences_are_narrow_if_both_models_fail_on_the_same_people():
    random = np.random.default_rng(0)
    trial_I = np.full(30, 20)
    common_I = random.binomial(18, random.beta(1, 1, 30))
    better_I = common_I + random.integers(1, 3, 30)
    (paired,) = paired_differences(common_I[None], better_I[None], trial_I[None], level=0.95, **OPTIONS)
    shuffled_I = random.permutation(better_I)
    (other,) = paired_differences(common_I[None], shuffled_I[None], trial_I[None], level=0.95, **OPTIONS)
    assert paired.difference == pytest.approx(other.difference)
    assert paired.high - paired.low < 0.3 * (other.high - other.low)
    assert paired.low > 0 > other.low
    assert paired.p == pytest.approx(1 / 4001)
    assert other.p > 0.05


def test_p_values_are_uniform_without_a_difference():
    random = np.random.default_rng(5)
    p = []
    for _ in range(300):
        trial = random.integers(1, 40, 20)
        error = random.binomial(trial, random.beta(1, 5, 20))
        p.append(permutation_test(error, trial, np.arange(20) % 3, permutations=99, seed=int(random.integers(1e9))).p)
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09
    assert 0.42 < np.mean(np.array(p) <= 0.5) < 0.58


def test_other_figures_and_the_smallest_p():
    error, trial = np.repeat([40, 1], 12), np.full(24, 50)
    result = permutation_test(error, trial, np.repeat([0, 1], 12), permutations=500, seed=1, figure=disparity.ratio)
    assert result.statistic == pytest.approx(40)
    assert result.p == pytest.approx(1 / 501)


def test_identities_without_group_or_trials_are_left_out():
    error, trial = np.array([1, 5, 0, 9]), np.array([10, 10, 0, 10])
    result = permutation_test(error, trial, np.array([0, 1, 0, -1]), **OPTIONS)
    assert result.statistic == pytest.approx(0.4)
    assert result.p == 1
    assert permutation_test(error, trial, np.array([0, 0, 1, -1]), **OPTIONS) is None
    assert nonmated_permutation_test(np.zeros((3, 3)), 1 - np.eye(3), np.array([0, 0, 1]), **OPTIONS) is None
    assert paired_permutation_test(np.zeros(2), np.zeros(2), np.zeros(2), **OPTIONS) is None
    assert permutation_test(error * 0, trial, np.array([0, 1, 0, 1]), figure=disparity.ratio, **OPTIONS) is None


def test_permuted_groups_keep_their_sizes():
    group_PI = permuted_groups(np.array([0, 0, 1, 2, 2, 2]), permutations=20, seed=0)
    assert (np.sort(group_PI, axis=1) == [0, 0, 1, 2, 2, 2]).all()
    assert len(np.unique(group_PI, axis=0)) > 5
    with pytest.raises(ValueError, match="permutations 0"):
        permuted_groups(np.zeros(3), permutations=0, seed=0)


def test_holm_by_hand():
    assert holm_adjust([0.01, 0.04, None, 0.03]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
    ]
    assert holm_adjust([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjust([]) == []
