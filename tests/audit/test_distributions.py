"""Distributions by group against plain computations: score shifts and response times.

N scores or images.
"""

import numpy as np
import pytest

from facelt.audit.distributions import QUANTILES, read_seconds, response_times, score_distributions, time_summary
from facelt.errors import UserError
from facelt.identification.error_rates import ScoreGrid, ScoreHistograms


def histograms(grid, mated_N, non_mated_N):
    return ScoreHistograms(
        grid, *(grid.count(np.asarray(score_N, dtype=np.float64)) for score_N in (mated_N, non_mated_N))
    )


def test_score_distributions_are_those_of_the_scores():
    random = np.random.default_rng(0)
    grid = ScoreGrid()
    scores = {"mated": random.uniform(-0.2, 0.9, 501), "non_mated": random.uniform(-0.9, 0.3, 2000)}
    everyone = {name: np.concatenate([score_N, random.uniform(-1, 1, 300)]) for name, score_N in scores.items()}
    result = score_distributions(histograms(grid, *scores.values()), histograms(grid, *everyone.values()))
    for name, score_N in scores.items():
        entry = result[name]
        assert entry["pairs"] == len(score_N)
        assert entry["mean"] == pytest.approx(score_N.mean(), abs=grid.resolution)
        assert entry["shift"] == pytest.approx(score_N.mean() - everyone[name].mean(), abs=2 * grid.resolution)
        expected_Q = np.quantile(score_N, QUANTILES, method="inverted_cdf")
        assert list(entry["quantiles"].values()) == pytest.approx(expected_Q.tolist(), abs=grid.resolution)
    few = score_distributions(histograms(grid, [0.5, 0.25], []), histograms(grid, *everyone.values()))
    assert few["mated"]["quantiles"] == {"0.05": 0.25, "0.25": 0.25, "0.5": 0.25, "0.75": 0.5, "0.95": 0.5}
    assert (few["non_mated"]["pairs"], few["non_mated"]["mean"], few["non_mated"]["shift"]) == (0, None, None)


def test_response_times_by_group():
    second_N = read_seconds(["0.5", "", " 2", "1.5", "", "3e0"])
    assert second_N[[0, 2, 3, 5]].tolist() == [0.5, 2.0, 1.5, 3.0]
    columns = {"group": ["a", "a", "a", "b", "c", ""], "hat": ["x"] * 6}
    times = response_times(["p", "p", "q", "r", "s", "t"], columns, second_N)
    assert times == {
        ("a", "x"): {"images": 2, "mean": 1.25, "median": 1.25, "quantile95": 2.0},
        ("b", "x"): {"images": 1, "mean": 1.5, "median": 1.5, "quantile95": 1.5},
        ("(unknown)", "x"): {"images": 1, "mean": 3.0, "median": 3.0, "quantile95": 3.0},
    }
    assert time_summary(np.arange(1.0, 101.0))["quantile95"] == 95.0


@pytest.mark.parametrize("text", ["fast", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=f"column 'seconds': '{text}' is no number of seconds"):
        read_seconds(["1", text])
