"""Coverage of intervals on simulated people, detection of wrong intervals, and the stored table."""

import re

import numpy as np
import pytest
from scipy import stats

from benchmarks import interval_coverage
from benchmarks.interval_coverage import (
    IDENTITIES,
    KINDS,
    PAIR_WORLDS,
    SEARCH_WORLDS,
    PairWorld,
    SearchWorld,
    even_images,
    measure_coverage,
)
from facelt.stats.intervals import MEASURED_COVERAGE, measured_coverage


@pytest.mark.parametrize("identities", [5, 15])
def test_search_intervals_hold(identities):
    result = measure_coverage(SEARCH_WORLDS[3], identities, draws=100, seed=1)
    # Four standard errors of 100 draws at 95% are 8.7 points.
    assert result["search"] > 0.863
    assert result["search_difference"] > 0.863
    assert result["paired_difference"] > 0.863
    assert result["gap_four"] > 0.863
    assert result["gini_four"] > 0.863
    # At 99.5% they are 2.8 points.
    assert result["search_difference_995"] > 0.967
    assert result["paired_difference_995"] > 0.967


def test_pair_intervals_hold():
    result = measure_coverage(PAIR_WORLDS[3], 10, draws=100, seed=2)
    assert result["pair"] > 0.863
    assert result["pair_across"] > 0.863
    assert result["pair_difference"] > 0.863
    assert result["pair_difference_995"] > 0.967


def test_too_narrow_intervals_are_detected(monkeypatch):
    # Percentiles of few identities are too narrow; so, by far, are limits that take all pairs to be independent.
    assert measure_coverage(SEARCH_WORLDS[3], 8, draws=100, seed=3, replicates=100)["search_percentile"] < 0.88

    def naive(random, world):
        error_I, trial_I = world.draw(random, 14)
        low, high = stats.binomtest(int(error_I.sum()), int(trial_I.sum())).proportion_ci(0.95, "wilson")
        return low <= world.rate <= high

    random = np.random.default_rng(0)
    assert np.mean([naive(random, SEARCH_WORLDS[3]) for _ in range(100)]) < 0.5
    sound = interval_coverage.rate_intervals
    monkeypatch.setattr(interval_coverage, "rate_intervals", lambda counts, level, **rest: sound(counts, level=0.5))
    assert measure_coverage(SEARCH_WORLDS[3], 15, draws=100, seed=1)["search"] < 0.7


def test_worlds_have_the_rates_they_name():
    random = np.random.default_rng(0)
    for world in (SEARCH_WORLDS[0], SEARCH_WORLDS[2], PAIR_WORLDS[1], PAIR_WORLDS[3]):
        error, trial = world.draw(random, 1200)
        assert error.sum() / trial.sum() == pytest.approx(world.rate, rel=0.12)
    errors, trial_I = SEARCH_WORLDS[3].draw_models(random, 2000, (1.0, 0.7))
    assert errors[1].sum() / trial_I.sum() == pytest.approx(0.7 * SEARCH_WORLDS[3].rate, rel=0.1)
    assert np.corrcoef(errors / trial_I)[0, 1] > 0.5
    error_I, trial_I = SearchWorld(0.3, 0.1, even_images).draw(random, 3000)
    # The persons' share of the variance, and what images and their few mates add to it.
    assert 0.1 < np.var(error_I / trial_I) / (0.3 * 0.7) < 0.13


def test_pair_counts_are_symmetric():
    error_II, trial_II = PairWorld(-1.0, 0.5, 0.5, even_images).draw(np.random.default_rng(0), 6)
    np.testing.assert_array_equal(error_II, error_II.T)
    assert not np.diag(trial_II).any()
    assert (error_II <= trial_II).all()


def test_percentile_limits_equal_a_loop_over_drawn_people():
    random = np.random.default_rng(4)
    trials = random.integers(1, 5, 6)
    errors = random.binomial(trials, 0.4)
    rates = []
    for draw in np.random.default_rng(7).multinomial(6, [1 / 6] * 6, size=200):
        people = [i for i in range(6) for _ in range(draw[i])]
        rates.append(sum(errors[i] for i in people) / sum(trials[i] for i in people))
    result = interval_coverage._percentile_limits(errors, trials, replicates=200, level=0.9, seed=7)
    assert result == pytest.approx(np.quantile(rates, [0.05, 0.95]), rel=1e-12)


def test_percentile_limits_of_equal_people_are_binomial():
    # 400 people with one trial each, 25% errors: the bootstrap is a binomial(400, 0.25) / 400.
    errors = np.repeat([1, 0], [100, 300])
    result = interval_coverage._percentile_limits(errors, np.ones(400), replicates=4000, level=0.95, seed=3)
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert result == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.006)


@pytest.mark.parametrize("kind", ["search", "pair"])
def test_the_table_is_what_is_measured(kind):
    worlds = SEARCH_WORLDS if kind == "search" else PAIR_WORLDS
    result = np.mean([measure_coverage(simulated, 10, draws=30, seed=9)[kind] for simulated in worlds])
    # Four standard errors of 120 to 180 draws are up to 8 points.
    assert measured_coverage(kind, 10).mean == pytest.approx(result, abs=0.08)


def test_the_table_in_the_docs_is_the_one_in_the_code(root):
    text = (root / "docs/auditing.md").read_text()
    for kind, meaning in KINDS.items():
        (row,) = re.findall(rf"^\| {re.escape(meaning)} \|(.*)\|$", text, re.MULTILINE)
        shown = [tuple(float(part) for part in re.findall(r"[\d.]+", cell)) for cell in row.split("|")]
        assert shown == [tuple(round(100 * share, 1) for share in MEASURED_COVERAGE[kind][n]) for n in IDENTITIES]


def test_lookup_interpolates_and_extends_the_table():
    for kind, row in MEASURED_COVERAGE.items():
        for n, (mean, lowest) in row.items():
            result = measured_coverage(kind, n)
            assert (result.mean, result.lowest) == pytest.approx((mean, lowest))
        between = measured_coverage(kind, 20)
        assert min(row[15][0], row[30][0]) <= between.mean <= max(row[15][0], row[30][0])
        assert measured_coverage(kind, 5000).mean == pytest.approx(row[30][0])
        assert measured_coverage(kind, 4) is None
    with pytest.raises(ValueError, match="coverage of 'det' was not measured"):
        measured_coverage("det", 14)
