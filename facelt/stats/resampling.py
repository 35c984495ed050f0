"""Bootstrap over identities: replicate weights and rates, bias-corrected percentile limits.

A replicate is a weight for each identity. A search or a mated pair has its identity's weight, a non-mated pair the
product of both identities' weights, so that no replicate needs a loop over pairs.

R replicates, I identities, U units, G groups, F figures.
"""

from collections.abc import Iterator

import numpy as np

from facelt.stats.groups import Grouping, UnitPairCounts, Units, group_pairs


def identity_weights(stratum_I: np.ndarray, *, replicates: int, seed: int) -> np.ndarray:
    """Returns the weight of each identity in each replicate, float64 [R,I]; each stratum keeps its total weight.

    Of the n identities of a stratum, n - 1 are drawn with replacement and weigh n / (n - 1), so that the variance of a
    mean over few identities is not too small by (n - 1) / n (Rao and Wu, Resampling Inference with Complex Survey Data,
    JASA 1988). With groups as strata no replicate lacks a group. An identity alone in its stratum is in every
    replicate. Raises ValueError if `replicates` is not positive.
    """
    stratum_I = np.asarray(stratum_I)
    if replicates < 1:
        raise ValueError(f"replicates {replicates} must be positive")
    random = np.random.default_rng(seed)
    weight_RI = np.ones((replicates, len(stratum_I)))
    for stratum in np.unique(stratum_I):
        member = np.flatnonzero(stratum_I == stratum)
        n = len(member)
        if n > 1:
            weight_RI[:, member] = random.multinomial(n - 1, np.full(n, 1 / n), size=replicates) * (n / (n - 1))
    return weight_RI


def replicate_rates(error_FI: np.ndarray, trial_FI: np.ndarray, weight_RI: np.ndarray) -> np.ndarray:
    """Returns the rates of searches or mated pairs in each replicate, [R,F]; NaN without trials."""
    with np.errstate(invalid="ignore"):
        return (weight_RI @ np.atleast_2d(error_FI).T) / (weight_RI @ np.atleast_2d(trial_FI).T)


def replicate_pair_rates(pairs: UnitPairCounts, units: Units, grouping: Grouping, weight_RI: np.ndarray) -> np.ndarray:
    """Returns the rates of `group_pairs(grouping)` in each replicate, [R,F]; NaN without pairs. Fixed units weigh 1.

    Both sides of a pair are resampled: Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 2007; for face
    comparisons: Bolle, Ratha and Pankanti, Error Analysis of Pattern Recognition Systems, CVIU 2004.
    """
    if pairs.mated:
        counts = pairs.clustered_counts(units, grouping)
        return replicate_rates(counts.error_FI, counts.trial_FI, weight_RI)
    sums = [_weighted_sums(count_UU, units, grouping, weight_RI) for count_UU in (pairs.error_UU, pairs.trial_UU)]
    with np.errstate(invalid="ignore"):
        return sums[0] / sums[1]


def _weighted_sums(count_UU: np.ndarray, units: Units, grouping: Grouping, weight_RI: np.ndarray) -> np.ndarray:
    """Returns sum_uv w_u w_v count_uv over each pair of groups, [R,F]; twice that within one group."""
    count_UU, member_UG = count_UU.astype(np.float64), grouping.membership()
    sum_RGG = np.empty((len(weight_RI), len(grouping), len(grouping)))
    for part in iterate_row_slices(len(weight_RI), len(units)):
        weight_BU = np.where(units.fixed_U, 1, weight_RI[part][:, units.identity_U])
        for g in range(len(grouping)):
            own_U = grouping.group_U == g
            sum_RGG[part, g] = ((weight_BU[:, own_U] @ count_UU[own_U]) * weight_BU) @ member_UG
    return np.stack([sum_RGG[:, a, b] for a, b in group_pairs(grouping)], axis=1)


def iterate_row_slices(rows: int, width: int) -> Iterator[slice]:
    """Yields slices of at least one row and at most 32 MB of float64 rows of that width."""
    step = max(1, (1 << 22) // max(width, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def bias_corrected_limits(
    value_R: np.ndarray, estimate: float, *, level: float, dof: float = np.inf
) -> tuple[float, float]:
    """Returns bias-corrected percentile limits of a figure whose replicates may lie to one side of its estimate.

    Efron, Nonparametric Standard Errors and Confidence Intervals, 1981: the quantiles Phi(2 z0 -+ z) with Phi(z0) the
    fraction of replicates below the estimate, ties counting half. z is the t quantile with `dof` degrees of freedom,
    because few identities show less than their true spread (the expanded percentiles of Hesterberg, What Teachers
    Should Know About the Bootstrap, 2015); for several groups, use the fewest of any. NaN replicates are ignored.
    NaN limits without any other replicate, or with all of them on one side.
    """
    from scipy.stats import norm, t

    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    value_R = value_R[~np.isnan(value_R)]
    if not len(value_R):
        return float("nan"), float("nan")
    share = ((value_R < estimate).mean() + (value_R <= estimate).mean()) / 2
    if not 0 < share < 1:
        return float("nan"), float("nan")
    z0, z = norm.ppf(share), t.ppf(0.5 + level / 2, dof)
    low, high = np.quantile(value_R, norm.cdf([2 * z0 - z, 2 * z0 + z]), method="inverted_cdf")
    return float(low), float(high)
