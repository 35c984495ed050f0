"""Bootstrap replicates against loops over drawn identities and pairs; limits against known distributions."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from facelt.stats.groups import PairCounter, Units, group_pairs
from facelt.stats.resampling import bias_corrected_limits, identity_weights, replicate_pair_rates, replicate_rates


@pytest.fixture(scope="module")
def world():
    """7 people and a group of distractors, age by image; every pair once."""
    random = np.random.default_rng(1)
    person_N = np.concatenate([np.repeat(np.arange(7), 4), np.full(5, 7)])
    identity_N = [f"p{i}" if i < 7 else "(crowd)" for i in person_N]
    age_N = np.where(person_N < 7, random.choice(["old", "young"], len(person_N)), "(crowd)")
    left, right = np.array([(a, b) for a, b in combinations(range(33), 2) if person_N[a] < 7]).T
    mated = person_N[left] == person_N[right]
    score = random.uniform(0, 0.8, len(left)) + 0.2 * mated
    units = Units.from_columns(identity_N, {"age": age_N.tolist()}, fixed_N=person_N == 7)
    counts = PairCounter(units, [0.5])
    counts.add(score, mated, left, right)
    return units, counts, person_N, age_N, (score, mated, left, right)


@pytest.mark.parametrize("kind", ["mated", "non_mated"])
def test_pair_rates_equal_a_loop_over_weighted_pairs(world, kind):
    units, counts, person_N, age_N, (score, mated, left, right) = world
    grouping = units.grouping(["age"])
    weight_RI = identity_weights(np.zeros(len(units.identities)), replicates=6, seed=2)
    result = replicate_pair_rates(getattr(counts, kind)(0), units, grouping, weight_RI)
    index = {name: i for i, name in enumerate(units.identities)}
    for weight_I, rate_F in zip(weight_RI, result, strict=True):
        weight = {p: weight_I[index[f"p{p}"]] for p in range(7)} | {7: 1.0}
        for f, (a, b) in enumerate(group_pairs(grouping)):
            wanted, errors, trials = {*grouping.names[a], *grouping.names[b]}, 0.0, 0.0
            for m in range(len(score)):
                if mated[m] == (kind == "mated") and {age_N[left[m]], age_N[right[m]]} == wanted:
                    ends = weight[person_N[left[m]]], weight[person_N[right[m]]]
                    w = ends[0] if mated[m] else ends[0] * ends[1]
                    trials += w
                    errors += w * ((score[m] >= 0.5) != mated[m])
            assert (np.isnan(rate_F[f]) and not trials) or rate_F[f] == pytest.approx(errors / trials)


def test_weights_keep_each_stratum_and_spread_as_a_mean_does():
    stratum_I = np.array([0] * 5 + [1] * 12 + [2])
    weight_RI = identity_weights(stratum_I, replicates=20_000, seed=0)
    for stratum in range(3):
        np.testing.assert_allclose(weight_RI[:, stratum_I == stratum].sum(axis=1), (stratum_I == stratum).sum())
    value_I = np.random.default_rng(0).normal(size=5)
    mean_R = weight_RI[:, :5] @ value_I / 5
    assert mean_R.var() == pytest.approx(value_I.var(ddof=1) / 5, rel=0.05)
    assert (weight_RI[:, -1] == 1).all()


def test_seeds_and_blocks():
    same = [identity_weights(np.zeros(9), replicates=4, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (same[0] != identity_weights(np.zeros(9), replicates=4, seed=4)).any()
    with pytest.raises(ValueError, match="replicates 0"):
        identity_weights(np.zeros(9), replicates=0, seed=0)


def test_search_rates():
    rate_RF = replicate_rates([[1, 0, 2]], [[2, 0, 4]], np.array([[1.0, 1, 0], [0, 3, 0]]))
    assert rate_RF[0, 0] == 0.5
    assert np.isnan(rate_RF[1, 0])


def test_limits_of_an_unbiased_figure_are_percentiles_and_bias_is_corrected():
    value_R = np.random.default_rng(0).normal(3, 1, 200_000)
    z = stats.norm.ppf(0.95)
    assert bias_corrected_limits(value_R, 3, level=0.9) == pytest.approx((3 - z, 3 + z), abs=0.02)
    # Replicates half a deviation too high: the limits lie a whole one below the percentiles.
    assert bias_corrected_limits(value_R, 2.5, level=0.9) == pytest.approx((2 - z, 2 + z), abs=0.03)
    t = stats.t.ppf(0.95, 6)
    assert bias_corrected_limits(value_R, 3, level=0.9, dof=6) == pytest.approx((3 - t, 3 + t), abs=0.02)
    assert bias_corrected_limits(np.r_[value_R, np.nan], 3, level=0.9)[0] == pytest.approx(3 - z, abs=0.02)


def test_uninformative_replicates_give_no_limits():
    assert np.isnan(bias_corrected_limits(np.full(4, np.nan), 0.2, level=0.9)).all()
    assert np.isnan(bias_corrected_limits(np.array([0.3, 0.4]), 0.2, level=0.9)).all()
    assert bias_corrected_limits(np.full(9, 0.2), 0.2, level=0.9) == (0.2, 0.2)
    with pytest.raises(ValueError, match="level 2"):
        bias_corrected_limits(np.ones(3), 1, level=2)
