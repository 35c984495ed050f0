"""Distributions by group that ISO/IEC 19795-10 asks for: shifts of scores, and response times.

N images, B bins of a histogram.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification.error_rates import ScoreHistograms
from facelt.stats.groups import Units

# Column of the time that an image took, from capture to decision or as the auditor defines it.
SECONDS = "seconds"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def score_distributions(histograms: ScoreHistograms, overall: ScoreHistograms) -> dict[str, dict[str, Any]]:
    """Returns mean and quantiles of the scores of mated and of non-mated pairs, and the shift of the mean from all.

    They are those of the bins' centres, so each is off by at most half a step of the grid. A quantile is the lowest
    score with at least that share of the scores at or below it. Without pairs the numbers are None.
    """
    return {
        "mated": _distribution(histograms, histograms.mated_B, overall.mated_B),
        "non_mated": _distribution(histograms, histograms.nonmated_B, overall.nonmated_B),
    }


def _distribution(histograms: ScoreHistograms, count_B: np.ndarray, overall_B: np.ndarray) -> dict[str, Any]:
    pairs = int(count_B.sum())
    if not pairs:
        return {"pairs": 0, "mean": None, "shift": None, "quantiles": dict.fromkeys(map(str, QUANTILES))}
    grid = histograms.grid
    score_B = grid.threshold(np.arange(len(count_B))) + grid.resolution / 2
    mean, overall_mean = (float(np.average(score_B, weights=part_B)) for part_B in (count_B, overall_B))
    # Rounding must not push a share that is reached exactly to the next score.
    needed_Q = np.ceil(np.array(QUANTILES) * pairs * (1 - 1e-12))
    quantile_Q = score_B[np.searchsorted(np.cumsum(count_B), needed_Q)]
    quantiles = dict(zip(map(str, QUANTILES), quantile_Q.tolist(), strict=True))
    return {"pairs": pairs, "mean": mean, "shift": mean - overall_mean, "quantiles": quantiles}


def read_seconds(values: Sequence[str]) -> np.ndarray:
    """Returns response times in seconds, float64 [N], NaN for an empty text.

    Raises UserError naming the first text that is no number of seconds.
    """
    second_N = np.full(len(values), np.nan)
    for row, text in enumerate(values):
        if not text.strip():
            continue
        try:
            second_N[row] = float(text)
        except ValueError:
            second_N[row] = -1
        if not 0 <= second_N[row] < np.inf:
            raise UserError(f"column {SECONDS!r}: {text!r} is no number of seconds; correct it or rename the column")
    return second_N


def response_times(
    identities: Sequence[str], columns: Mapping[str, Sequence[str]], second_N: np.ndarray
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Returns mean, median and 95 % quantile of the response times of each group that has any, and their number.

    `columns` are those of the grouping, N values each; failures to enrol count as well if they have a time.
    """
    units = Units.from_columns(identities, columns)
    grouping = units.grouping(tuple(columns))
    group_N = np.where(np.isnan(second_N), -1, grouping.group_U[units.unit_N])
    return {
        name: time_summary(second_N[group_N == group])
        for group, name in enumerate(grouping.names)
        if (group_N == group).any()
    }


def time_summary(second_N: np.ndarray) -> dict[str, Any]:
    """Returns mean, median and 95 % quantile (inverse of the distribution function) of times without NaN."""
    return {
        "images": len(second_N),
        "mean": float(second_N.mean()),
        "median": float(np.median(second_N)),
        "quantile95": float(np.quantile(second_N, 0.95, method="inverted_cdf")),
    }
