"""Identity bootstrap against a plain loop and the binomial distribution, and without identities to resample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.stats.resampling import bootstrap_rates


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9))
def test_equals_a_plain_loop(seed, identities):
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 5, (3, identities))
    hits = random.binomial(pairs, 0.6)
    low, high = bootstrap_rates(hits, pairs, replicates=200, level=0.9, seed=seed)
    draws = np.random.default_rng(seed).multinomial(identities, [1 / identities] * identities, size=200)
    for f in range(3):
        rates = []
        for draw in draws:
            chosen = [i for i in range(identities) for _ in range(draw[i])]
            if sum(pairs[f, i] for i in chosen):
                rates.append(sum(hits[f, i] for i in chosen) / sum(pairs[f, i] for i in chosen))
        if np.count_nonzero(pairs[f]) < 2:
            assert np.isnan([low[f], high[f]]).all()
        else:
            np.testing.assert_allclose([low[f], high[f]], np.quantile(rates, [0.05, 0.95]), rtol=1e-12)


def test_equal_identities_give_the_binomial_interval():
    # 400 people of one pair each, 75% hits: the bootstrap is a binomial(400, 0.75) / 400.
    hits = np.repeat([1, 0], [300, 100])
    low, high = bootstrap_rates(hits, np.ones(400), replicates=4000, level=0.95, seed=3)
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low[0] == pytest.approx(0.75 - spread, abs=0.006)
    assert high[0] == pytest.approx(0.75 + spread, abs=0.006)


def test_clustered_intervals_are_wider():
    hits, pairs = np.tile([0, 50], 20), np.full(40, 50)
    low, high = bootstrap_rates(hits, pairs, replicates=500, level=0.95, seed=0)
    assert high[0] - low[0] > 0.25  # 2,000 independent pairs would give 0.04


def test_the_seed_determines_the_interval():
    random = np.random.default_rng(0)
    pairs = random.integers(1, 30, 40)
    hits = random.binomial(pairs, 0.7)
    options = {"replicates": 100, "level": 0.95}
    assert bootstrap_rates(hits, pairs, seed=1, **options) == bootstrap_rates(hits, pairs, seed=1, **options)
    assert bootstrap_rates(hits, pairs, seed=1, **options) != bootstrap_rates(hits, pairs, seed=2, **options)


def test_one_identity_or_none_has_no_interval():
    low, high = bootstrap_rates([[3, 0], [0, 0]], [[4, 0], [0, 0]], replicates=50, level=0.95, seed=0)
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    low, high = bootstrap_rates(np.zeros((1, 0)), np.zeros((1, 0)), replicates=50, level=0.95, seed=0)
    assert np.isnan(low).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="level"):
        bootstrap_rates([1], [1], replicates=10, level=1.0, seed=0)
    with pytest.raises(ValueError, match="hits are"):
        bootstrap_rates([1], [1, 2], replicates=10, level=0.9, seed=0)
