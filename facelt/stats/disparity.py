"""Disparity measures over the error rates of groups: gap, ratio, max over geometric mean, Gini, FDR, inequity, GARBE.

The measures are functions of one rate per group; the last axis is the groups, axes before it may be bootstrap
replicates or permutations. `DISPARITY_MEASURES` names them and computes them from counts: if a group has no error, a
measure that divides by its rate becomes a lower bound instead of infinity.

G groups, `...` replicates or nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.stats.intervals import divide

# Weight of FMR against FNMR in the joint measures.
DEFAULT_ALPHA = 0.5


def gap(rate_G: np.ndarray) -> np.ndarray:
    """Returns the largest minus the smallest rate, [...]: max_i x_i - min_i x_i."""
    rate_G = _rates(rate_G)
    return rate_G.max(axis=-1) - rate_G.min(axis=-1)


def ratio(rate_G: np.ndarray) -> np.ndarray:
    """Returns the largest over the smallest rate, [...]; infinite if only the smallest is 0, NaN if all are 0."""
    rate_G = _rates(rate_G)
    return divide(rate_G.max(axis=-1), rate_G.min(axis=-1))


def max_over_geometric_mean(rate_G: np.ndarray) -> np.ndarray:
    """Returns the largest rate over the geometric mean, [...]: max_i x_i / (prod_i x_i)^(1/n).

    Grother, Face Recognition Vendor Test Part 8: Summarizing Demographic Differentials, NIST IR 8429, 2022. Infinite
    if some rate is 0, NaN if all are.
    """
    rate_G = _rates(rate_G)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(rate_G).mean(axis=-1))
    return divide(rate_G.max(axis=-1), mean)


def gini(rate_G: np.ndarray) -> np.ndarray:
    """Returns the Gini coefficient, [...]: 0 if all rates are equal, 1 if one group has all errors.

    n / (n - 1) * sum_i sum_j |x_i - x_j| / (2 n^2 mean(x)); the first factor lets it reach 1 for few groups (Howard et
    al., Evaluating Proposed Fairness Models for Face Recognition Algorithms, 2022, equation of GARBE). NaN if all
    rates are 0.
    """
    rate_G = np.sort(_rates(rate_G), axis=-1)
    groups = rate_G.shape[-1]
    # In sorted order, x_k is the larger one of k differences and the smaller one of groups - 1 - k.
    factor_G = 2 * np.arange(groups) - (groups - 1)
    return divide((rate_G * factor_G).sum(axis=-1), (groups - 1) * rate_G.sum(axis=-1))


def fairness_discrepancy_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
    """Returns the FDR, [...], 1 for equal groups: 1 - (alpha * gap(FMR) + (1 - alpha) * gap(FNMR)).

    de Freitas Pereira and Marcel, Fairness in Biometrics: A Figure of Merit to Assess Biometric Verification Systems,
    IEEE T-BIOM 2022, at one threshold for all groups. At usual thresholds FMR is a thousand times smaller than FNMR, so
    that FDR with alpha 0.5 hardly reflects false matches.
    """
    return 1 - (_alpha(alpha) * gap(fmr_G) + (1 - alpha) * gap(fnmr_G))


def inequity_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
    """Returns the inequity rate, [...], 1 for equal groups: ratio(FMR)^alpha * ratio(FNMR)^(1 - alpha).

    Grother, Demographic Differentials in Face Recognition Algorithms, NIST, 2021, whose second exponent, beta, is
    1 - alpha here. Infinite or NaN as `ratio` is.
    """
    return ratio(fmr_G) ** _alpha(alpha) * ratio(fnmr_G) ** (1 - alpha)


def garbe(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
    """Returns GARBE, [...], 0 for equal groups, at most 1: alpha * gini(FMR) + (1 - alpha) * gini(FNMR).

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


@dataclass(frozen=True)
class Disparity:
    """Value of a disparity measure, or None with the reason in `note`.

    `at_least` marks a lower bound: a group named in `note` has no error and its rate is replaced by an upper limit.
    """

    value: float | None
    at_least: bool = False
    note: str = ""


@dataclass(frozen=True, eq=False)
class GroupErrors:
    """Errors among the trials of each group, for one kind of error.

    Args:
        names: the groups.
        error_G, trial_G: counts; a group without trials has no rate and is left out.
        upper_G: upper confidence limit of each group's rate, used if the group has no error: those of
            `facelt.stats.intervals`, which account for clustered trials; by default `zero_error_bound` of the trials.
        kind: name of one error, such as "false match".
    """

    names: tuple[str, ...]
    error_G: np.ndarray
    trial_G: np.ndarray
    upper_G: np.ndarray | None = None
    kind: str = "error"

    def __post_init__(self) -> None:
        upper_G = zero_error_bound(self.trial_G) if self.upper_G is None else self.upper_G
        for name, value in (("error_G", self.error_G), ("trial_G", self.trial_G), ("upper_G", upper_G)):
            vector_G = np.asarray(value, dtype=np.float64)
            if vector_G.shape != (len(self.names),):
                raise ValueError(f"{name} has shape {list(vector_G.shape)} for {len(self.names)} groups")
            object.__setattr__(self, name, vector_G)
        if (self.error_G < 0).any() or (self.error_G > self.trial_G).any():
            raise ValueError("every group's errors must lie between 0 and its trials")

    def rates(self, kept_G: np.ndarray) -> np.ndarray:
        """Returns the rates of the groups in the mask."""
        return self.error_G[kept_G] / self.trial_G[kept_G]

    def least_unequal_rates(self, kept_G: np.ndarray) -> np.ndarray:
        """Returns the rates of the groups in the mask, zeros replaced by the value that minimises the disparity.

        Of the values that a rate without errors may have, that is its upper limit, or the largest observed rate if
        that is smaller: any other value increases the largest over the smallest rate, or over the geometric mean.
        """
        rate_G = self.rates(kept_G)
        return np.where(rate_G == 0, np.minimum(self.upper_G[kept_G], rate_G.max()), rate_G)


def zero_error_bound(trials: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Returns the upper limit of a rate after that many independent trials without error: z^2 / (trials + z^2).

    Wilson's upper limit at 0 (Wilson, JASA 1927), z the two-sided normal quantile: 3.84 / trials at 95%, a little above
    the 'rule of three', 3 / trials (Hanley and Lippman-Hand, JAMA 1983).
    """
    from scipy.stats import norm

    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    square = norm.ppf(0.5 + level / 2) ** 2
    return square / (np.asarray(trials, dtype=np.float64) + square)


@dataclass(frozen=True)
class DisparityMeasure:
    """Disparity measure of one kind of error or, if `is_joint`, of false matches and false non-matches with `alpha`.

    Args:
        from_rates: the measure as a function of rates [..., G] of each kind of error, then alpha if joint.
        is_joint: takes both kinds of match errors.
        needs_errors: undefined if no group has an error of a kind.
        divides_by_rates: a group without errors turns the value into a lower bound.
    """

    from_rates: Callable[..., np.ndarray]
    is_joint: bool = False
    needs_errors: bool = True
    divides_by_rates: bool = False

    def from_counts(self, *errors: GroupErrors, alpha: float = DEFAULT_ALPHA) -> Disparity:
        """Returns the measure over the groups that have trials of every kind. Raises ValueError on different groups."""
        if len({kind.names for kind in errors}) > 1:
            raise ValueError(f"errors of different groups: {' and '.join(str(kind.names) for kind in errors)}")
        kept_G = np.logical_and.reduce([kind.trial_G > 0 for kind in errors])
        if kept_G.sum() < 2:
            return Disparity(None, note="fewer than two groups have trials")
        rates, notes = [], []
        for kind in errors:
            if self.needs_errors and not kind.error_G[kept_G].any():
                return Disparity(None, note=f"no group has a {kind.kind}")
            zero = [kind.names[g] for g in np.flatnonzero(kept_G & (kind.error_G == 0))]
            if self.divides_by_rates and zero:
                notes.append(f"no {kind.kind} in {', '.join(zero)}: their upper bound is used")
            rates.append(kind.least_unequal_rates(kept_G) if self.divides_by_rates else kind.rates(kept_G))
        value = self.from_rates(*rates, *([alpha] if self.is_joint else []))
        return Disparity(float(value), bool(notes), "; ".join(notes))


# The measures by the name that reports and --fail-if use.
DISPARITY_MEASURES: Mapping[str, DisparityMeasure] = MappingProxyType(
    {
        "gap": DisparityMeasure(gap, needs_errors=False),
        "ratio": DisparityMeasure(ratio, divides_by_rates=True),
        "max_over_geometric_mean": DisparityMeasure(max_over_geometric_mean, divides_by_rates=True),
        "gini": DisparityMeasure(gini),
        "fdr": DisparityMeasure(fairness_discrepancy_rate, is_joint=True, needs_errors=False),
        "inequity": DisparityMeasure(inequity_rate, is_joint=True, divides_by_rates=True),
        "garbe": DisparityMeasure(garbe, is_joint=True),
    }
)


@dataclass(frozen=True)
class DisparityEstimate:
    """Disparity of a metric over the groups of `by`, as reported; `low` and `high` are None for no value or a bound."""

    figure: str
    metric: str
    by: tuple[str, ...]
    value: float | None
    at_least: bool = False
    note: str = ""
    low: float | None = None
    high: float | None = None
