"""How unequal the error rates of groups are: gap, ratio, max over geometric mean, FDR, inequity rate and GARBE.

All of them take one rate a group and are functions of rates alone, so the last axis is the groups and the axes before
it may be bootstrap replicates or permutations. `facelt.metrics.bounds` decides what is said where a group has no error.

G groups, `...` replicates or nothing.
"""

import numpy as np

# The weight of false matches against false non-matches where the user names none: both count the same.
ALPHA = 0.5


def gap(rate_G: np.ndarray) -> np.ndarray:
    """Largest minus smallest rate, [...]: max_i x_i - min_i x_i."""
    rate_G = _rates(rate_G)
    return rate_G.max(axis=-1) - rate_G.min(axis=-1)


def ratio(rate_G: np.ndarray) -> np.ndarray:
    """Largest over smallest rate, [...]; infinite where only the smallest is 0, NaN where all are 0."""
    rate_G = _rates(rate_G)
    return _divide(rate_G.max(axis=-1), rate_G.min(axis=-1))


def max_over_geometric_mean(rate_G: np.ndarray) -> np.ndarray:
    """Largest rate over the geometric mean of all, [...]: max_i x_i / (prod_i x_i)^(1/n).

    Grother, Face Recognition Vendor Test Part 8: Summarizing Demographic Differentials, NIST IR 8429, 2022. Infinite
    where some rate is 0, NaN where all are.
    """
    rate_G = _rates(rate_G)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(rate_G).mean(axis=-1))
    return _divide(rate_G.max(axis=-1), mean)


def gini(rate_G: np.ndarray) -> np.ndarray:
    """Gini coefficient of the rates, [...], 0 where all are equal and 1 where one group has all errors.

    n / (n - 1) * sum_i sum_j |x_i - x_j| / (2 n^2 mean(x)); the first factor lets it reach 1 when groups are few
    (Howard et al., Evaluating Proposed Fairness Models for Face Recognition Algorithms, 2022, equation of GARBE). NaN
    where all rates are 0: nothing was shared out.
    """
    rate_G = np.sort(_rates(rate_G), axis=-1)
    groups = rate_G.shape[-1]
    # In sorted order, x_k is the larger one of k differences and the smaller one of groups - 1 - k.
    factor_G = 2 * np.arange(groups) - (groups - 1)
    return _divide((rate_G * factor_G).sum(axis=-1), (groups - 1) * rate_G.sum(axis=-1))


def fairness_discrepancy_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """FDR, [...], 1 where groups are equal: 1 - (alpha * gap(FMR) + (1 - alpha) * gap(FNMR)).

    de Freitas Pereira and Marcel, Fairness in Biometrics: A Figure of Merit to Assess Biometric Verification Systems,
    IEEE T-BIOM 2022, at one threshold for all groups. At everyday thresholds FMR is a thousand times smaller than FNMR,
    so that with alpha 0.5 the figure hardly sees false matches.
    """
    return 1 - (_alpha(alpha) * gap(fmr_G) + (1 - alpha) * gap(fnmr_G))


def inequity_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Inequity rate, [...], 1 where groups are equal: ratio(FMR)^alpha * ratio(FNMR)^(1 - alpha).

    Grother, Demographic Differentials in Face Recognition Algorithms, NIST, 2021, whose second exponent, beta, is
    1 - alpha here. Infinite or NaN as `ratio` is.
    """
    return ratio(fmr_G) ** _alpha(alpha) * ratio(fnmr_G) ** (1 - alpha)


def garbe(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """GARBE, [...], 0 where groups are equal, at most 1: alpha * gini(FMR) + (1 - alpha) * gini(FNMR).

    Gini Aggregation Rate for Biometric Equitability: Howard, Laird, Sirotin, Rubin, Tipton and Vemury, Evaluating
    Proposed Fairness Models for Face Recognition Algorithms, 2022.
    """
    return _alpha(alpha) * gini(fmr_G) + (1 - alpha) * gini(fnmr_G)


def _rates(rate_G: np.ndarray) -> np.ndarray:
    rate_G = np.asarray(rate_G, dtype=np.float64)
    if rate_G.ndim == 0 or rate_G.shape[-1] < 2:
        raise ValueError(f"a disparity compares two groups or more, not rates of shape {list(rate_G.shape)}")
    return rate_G


def _alpha(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} must lie between 0 and 1")
    return alpha


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below
