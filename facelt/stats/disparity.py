"""How unequal the error rates of groups are: gap, ratio, max over geometric mean, FDR, inequity rate and GARBE.

All of them take one rate a group and are functions of rates alone, so the last axis is the groups and the axes before
it may be bootstrap replicates or permutations. Bounds decide what is said where a group has no error.

G groups, `...` replicates or nothing.

Disparities of counted errors: a group without errors gives a bound, never an infinite or an invented figure.

G groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The weight of false matches against false non-matches where the user names none: both count the same.
DEFAULT_ALPHA = 0.5


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


def fairness_discrepancy_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
    """FDR, [...], 1 where groups are equal: 1 - (alpha * gap(FMR) + (1 - alpha) * gap(FNMR)).

    de Freitas Pereira and Marcel, Fairness in Biometrics: A Figure of Merit to Assess Biometric Verification Systems,
    IEEE T-BIOM 2022, at one threshold for all groups. At everyday thresholds FMR is a thousand times smaller than FNMR,
    so that with alpha 0.5 the figure hardly sees false matches.
    """
    return 1 - (_alpha(alpha) * gap(fmr_G) + (1 - alpha) * gap(fnmr_G))


def inequity_rate(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
    """Inequity rate, [...], 1 where groups are equal: ratio(FMR)^alpha * ratio(FNMR)^(1 - alpha).

    Grother, Demographic Differentials in Face Recognition Algorithms, NIST, 2021, whose second exponent, beta, is
    1 - alpha here. Infinite or NaN as `ratio` is.
    """
    return ratio(fmr_G) ** _alpha(alpha) * ratio(fnmr_G) ** (1 - alpha)


def garbe(fmr_G: np.ndarray, fnmr_G: np.ndarray, alpha: float = DEFAULT_ALPHA) -> np.ndarray:
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


@dataclass(frozen=True)
class Disparity:
    """One figure over groups: `value`, or None and in `note` why there is none.

    `at_least` says that the value is a lower bound, because a group named in `note` had no error and its rate was
    taken as high as its counts allow.
    """

    value: float | None
    at_least: bool = False
    note: str = ""


@dataclass(frozen=True, eq=False)
class GroupErrors:
    """Errors among trials of each group, for one kind of error.

    Args:
        names: the groups.
        error_G, trial_G: counts; a group without trials has no rate and takes no part.
        upper_G: the highest rate each group's data leave plausible, used where it has no error: the upper limits of
            `facelt.stats.intervals`, which know that the trials of one person are alike; by default
            `zero_error_bound` of the trials.
        kind: what one error is called.
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
        """The rates of the groups in the mask."""
        return self.error_G[kept_G] / self.trial_G[kept_G]

    def least_unequal_rates(self, kept_G: np.ndarray) -> np.ndarray:
        """The rates of the groups in the mask, a 0 replaced by the value that makes the groups most alike.

        Of the values a group without errors may have, that is its upper bound, or the largest rate seen if that is
        smaller: any other value makes the largest over the smallest rate, or over the geometric mean, larger.
        """
        rate_G = self.rates(kept_G)
        return np.where(rate_G == 0, np.minimum(self.upper_G[kept_G], rate_G.max()), rate_G)


def zero_error_bound(trials: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The highest rate that no error in so many independent trials leaves plausible: z^2 / (trials + z^2).

    Wilson's upper limit at 0 (Wilson, JASA 1927), z the two-sided normal quantile: 3.84 / trials at 95%, a little above
    the 'rule of three', 3 / trials (Hanley and Lippman-Hand, JAMA 1983).
    """
    from scipy.stats import norm

    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    square = norm.ppf(0.5 + level / 2) ** 2
    return square / (np.asarray(trials, dtype=np.float64) + square)


def gap_from_counts(errors: GroupErrors) -> Disparity:
    """`disparity.gap` of counts; a rate of 0 is a rate, so that two groups with trials always give a figure."""
    kept_G = errors.trial_G > 0
    return _too_few(kept_G) or Disparity(float(gap(errors.rates(kept_G))))


def gini_from_counts(errors: GroupErrors) -> Disparity:
    """`disparity.gini` of counts; None where no group has an error."""
    kept_G = errors.trial_G > 0
    return _too_few(kept_G) or _no_error(errors, kept_G) or Disparity(float(gini(errors.rates(kept_G))))


def ratio_from_counts(errors: GroupErrors) -> Disparity:
    """`disparity.ratio` of counts, `at_least` where a group has no error, None where none has."""
    return _quotient(ratio, errors, errors.trial_G > 0)


def max_over_geometric_mean_from_counts(errors: GroupErrors) -> Disparity:
    """`disparity.max_over_geometric_mean` of counts, `at_least` where a group has no error, None where none has."""
    return _quotient(max_over_geometric_mean, errors, errors.trial_G > 0)


def fairness_discrepancy_rate_from_counts(
    false_match: GroupErrors, false_non_match: GroupErrors, alpha: float = DEFAULT_ALPHA
) -> Disparity:
    """`disparity.fairness_discrepancy_rate` of counts, over the groups that have trials of both kinds."""
    kept_G = _both(false_match, false_non_match)
    if few := _too_few(kept_G):
        return few
    rates = false_match.rates(kept_G), false_non_match.rates(kept_G)
    return Disparity(float(fairness_discrepancy_rate(*rates, alpha)))


def garbe_from_counts(
    false_match: GroupErrors, false_non_match: GroupErrors, alpha: float = DEFAULT_ALPHA
) -> Disparity:
    """`disparity.garbe` of counts, over the groups that have trials of both kinds; None where one kind has no error."""
    kept_G = _both(false_match, false_non_match)
    if missing := _too_few(kept_G) or _no_error(false_match, kept_G) or _no_error(false_non_match, kept_G):
        return missing
    return Disparity(float(garbe(false_match.rates(kept_G), false_non_match.rates(kept_G), alpha)))


def inequity_rate_from_counts(
    false_match: GroupErrors, false_non_match: GroupErrors, alpha: float = DEFAULT_ALPHA
) -> Disparity:
    """`disparity.inequity_rate` of counts, over the groups that have trials of both kinds.

    `at_least` where a group has no error of one kind, None where no group has one.
    """
    kept_G = _both(false_match, false_non_match)
    parts = [_quotient(ratio, errors, kept_G) for errors in (false_match, false_non_match)]
    if missing := next((part for part in parts if part.value is None), None):
        return missing
    rates = [errors.least_unequal_rates(kept_G) for errors in (false_match, false_non_match)]
    notes = "; ".join(part.note for part in parts if part.note)
    return Disparity(float(inequity_rate(*rates, alpha)), any(part.at_least for part in parts), notes)


def _quotient(figure: Callable[[np.ndarray], np.ndarray], errors: GroupErrors, kept_G: np.ndarray) -> Disparity:
    if missing := _too_few(kept_G) or _no_error(errors, kept_G):
        return missing
    value = float(figure(errors.least_unequal_rates(kept_G)))
    faultless = [errors.names[g] for g in np.flatnonzero(kept_G & (errors.error_G == 0))]
    if not faultless:
        return Disparity(value)
    return Disparity(value, True, f"no {errors.kind} in {', '.join(faultless)}: their upper bound is used")


def _both(false_match: GroupErrors, false_non_match: GroupErrors) -> np.ndarray:
    if false_match.names != false_non_match.names:
        raise ValueError(f"two kinds of errors of different groups: {false_match.names} and {false_non_match.names}")
    return (false_match.trial_G > 0) & (false_non_match.trial_G > 0)


def _too_few(kept_G: np.ndarray) -> Disparity | None:
    return Disparity(None, note="fewer than two groups have trials") if kept_G.sum() < 2 else None


def _no_error(errors: GroupErrors, kept_G: np.ndarray) -> Disparity | None:
    return None if errors.error_G[kept_G].any() else Disparity(None, note=f"no group has a {errors.kind}")
