"""Disparity measures over the error rates of groups: gap, ratio, max over geometric mean, Gini, FDR, inequity, GARBE.

The measures are functions of one rate per group; the last axis is the groups. `DISPARITY_MEASURES` names them,
computes them from counts, and has their limits: if a group has no error, a measure of ratios is a lower bound.

G groups, C candidate values, `...` further axes or none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.stats.differences import RateDifferences
from facelt.stats.intervals import RateIntervals, divide

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
        """Returns candidates of the least unequal rates of the groups in the mask, [C,G]: zeros are replaced.

        A rate without errors may be anything up to its upper limit. The least unequal rates of a sum are the smaller of
        that limit and one common value (they are majorised by all others), and between two of the limits and observed
        rates a disparity changes monotonically with that value: the least disparity is at one of these.
        """
        rate_G = self.rates(kept_G)
        is_zero_G = rate_G == 0
        common_C = np.unique(np.where(is_zero_G, self.upper_G[kept_G], rate_G))
        replaced_CG = np.minimum(self.upper_G[kept_G], common_C[:, None])
        return np.where(is_zero_G, replaced_CG, rate_G) if is_zero_G.any() else rate_G[None]


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


@dataclass(frozen=True, eq=False)
class PairwiseLimits:
    """Limits of the difference and of the ratio of every two groups' rates (row over column), all true at one level.

    The level of each pair is 1 - (1 - level) / pairs (Bonferroni). The limits of a disparity over all groups follow
    from those of the pairs, whichever groups have the extreme rates.
    """

    rate_G: np.ndarray
    difference_low_GG: np.ndarray
    difference_high_GG: np.ndarray
    ratio_low_GG: np.ndarray
    ratio_high_GG: np.ndarray

    @classmethod
    def between(cls, intervals: RateIntervals, figures: Sequence[int], *, level: float) -> "PairwiseLimits":
        """Returns the limits between all of two or more figures."""
        first_K, second_K = np.triu_indices(len(figures), 1)
        index_G = np.asarray(figures)
        differences = RateDifferences.between(intervals, index_G[first_K], index_G[second_K])
        of_pair = 1 - (1 - level) / len(first_K)
        (low_K, high_K), (ratio_low_K, ratio_high_K) = differences.limits(of_pair), differences.ratio_limits(of_pair)
        # Of two groups without errors nothing is known.
        ratio_low_K = np.where(np.isnan(ratio_low_K), 0, ratio_low_K)
        ratio_high_K = np.where(np.isnan(ratio_high_K), np.inf, ratio_high_K)
        low_GG, high_GG = np.zeros((2, len(figures), len(figures)))
        ratio_low_GG, ratio_high_GG = np.ones((2, len(figures), len(figures)))
        low_GG[first_K, second_K], high_GG[first_K, second_K] = low_K, high_K
        low_GG[second_K, first_K], high_GG[second_K, first_K] = -high_K, -low_K
        ratio_low_GG[first_K, second_K], ratio_high_GG[first_K, second_K] = ratio_low_K, ratio_high_K
        ratio_low_GG[second_K, first_K] = divide(1, ratio_high_K)
        ratio_high_GG[second_K, first_K] = divide(1, ratio_low_K)
        return cls(intervals.rate_F[index_G], low_GG, high_GG, ratio_low_GG, ratio_high_GG)

    def gap(self) -> tuple[float, float]:
        """Returns the limits of `gap`."""
        return float(self.difference_low_GG.max()), float(self.difference_high_GG.max())

    def ratio(self) -> tuple[float, float]:
        """Returns the limits of `ratio`; the upper one may be infinite."""
        return float(self.ratio_low_GG.max()), float(self.ratio_high_GG.max())

    def max_over_geometric_mean(self) -> tuple[float, float]:
        """Returns the limits of `max_over_geometric_mean`: a rate over the geometric mean is that of its ratios."""
        with np.errstate(divide="ignore"):
            low, high = (
                float(np.exp(np.log(ratio_GG).mean(axis=1).max()))
                for ratio_GG in (self.ratio_low_GG, self.ratio_high_GG)
            )
        return max(low, 1.0), high

    def gini(self) -> tuple[float, float]:
        """Returns the limits of `gini`, the mean of the pairs' coefficients weighted by the sums of their rates.

        The coefficient of a pair is (ratio - 1) / (ratio + 1), ratio that of the larger rate to the smaller. Weights
        are those of the observed rates.
        """
        first_K, second_K = np.triu_indices(len(self.rate_G), 1)
        weight_K = self.rate_G[first_K] + self.rate_G[second_K]
        least_K = np.maximum(self.ratio_low_GG, self.ratio_low_GG.T)[first_K, second_K]
        most_K = np.maximum(self.ratio_high_GG, self.ratio_high_GG.T)[first_K, second_K]
        # 1 - 2 / (ratio + 1) is 1 for an infinite ratio.
        low, high = (float(np.average(1 - 2 / (np.maximum(ratio_K, 1) + 1), weights=weight_K)) for ratio_K in
                     (least_K, most_K))  # fmt: skip
        return low, high


def _fdr_limits(fmr: PairwiseLimits, fnmr: PairwiseLimits, alpha: float) -> tuple[float, float]:
    (fmr_low, fmr_high), (fnmr_low, fnmr_high) = fmr.gap(), fnmr.gap()
    return 1 - (alpha * fmr_high + (1 - alpha) * fnmr_high), 1 - (alpha * fmr_low + (1 - alpha) * fnmr_low)


def _inequity_limits(fmr: PairwiseLimits, fnmr: PairwiseLimits, alpha: float) -> tuple[float, float]:
    ends = zip(fmr.ratio(), fnmr.ratio(), strict=True)
    low, high = (fmr_end**alpha * fnmr_end ** (1 - alpha) for fmr_end, fnmr_end in ends)
    return low, high


def _garbe_limits(fmr: PairwiseLimits, fnmr: PairwiseLimits, alpha: float) -> tuple[float, float]:
    ends = zip(fmr.gini(), fnmr.gini(), strict=True)
    low, high = (alpha * fmr_end + (1 - alpha) * fnmr_end for fmr_end, fnmr_end in ends)
    return low, high


@dataclass(frozen=True)
class DisparityMeasure:
    """Disparity measure of one kind of error or, if `is_joint`, of false matches and false non-matches with `alpha`.

    Args:
        from_rates: the measure as a function of rates [..., G] of each kind of error, then alpha if joint.
        limits_from: its limits as a function of the `PairwiseLimits` of each kind of error, then alpha if joint.
        is_joint: takes both kinds of match errors.
        needs_errors: undefined if no group has an error of a kind.
        of_ratios: depends on ratios of rates, so that a group without errors turns the value into a lower bound.
    """

    from_rates: Callable[..., np.ndarray]
    limits_from: Callable[..., tuple[float, float]]
    is_joint: bool = False
    needs_errors: bool = True
    of_ratios: bool = False

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
            if self.of_ratios and zero:
                notes.append(f"no {kind.kind} in {', '.join(zero)}: their upper bound is used")
            rates.append(kind.least_unequal_rates(kept_G) if self.of_ratios else kind.rates(kept_G)[None])
        if self.is_joint:
            # All combinations of the candidates of both kinds, [C,1,G] and [1,C,G].
            value = self.from_rates(rates[0][:, None], rates[1][None], alpha).min()
        else:
            value = self.from_rates(*rates).min()
        return Disparity(float(value), bool(notes), "; ".join(notes))

    def limits(
        self, groups: Sequence[tuple[RateIntervals, Sequence[int]]], *, level: float, alpha: float
    ) -> tuple[float, float]:
        """Returns the limits from the intervals and figures of two or more groups for each kind of error.

        The limits of a joint measure combine those of both kinds at 1 - (1 - level) / 2. The upper one may be infinite.
        """
        of_kind = 1 - (1 - level) / len(groups)
        kinds = [PairwiseLimits.between(intervals, figures, level=of_kind) for intervals, figures in groups]
        return self.limits_from(*kinds, *([alpha] if self.is_joint else []))


# The measures by the name that reports and --fail-if use.
DISPARITY_MEASURES: Mapping[str, DisparityMeasure] = MappingProxyType(
    {
        "gap": DisparityMeasure(gap, PairwiseLimits.gap, needs_errors=False),
        "ratio": DisparityMeasure(ratio, PairwiseLimits.ratio, of_ratios=True),
        "max_over_geometric_mean": DisparityMeasure(
            max_over_geometric_mean, PairwiseLimits.max_over_geometric_mean, of_ratios=True
        ),
        "gini": DisparityMeasure(gini, PairwiseLimits.gini, of_ratios=True),
        "fdr": DisparityMeasure(fairness_discrepancy_rate, _fdr_limits, is_joint=True, needs_errors=False),
        "inequity": DisparityMeasure(inequity_rate, _inequity_limits, is_joint=True, of_ratios=True),
        "garbe": DisparityMeasure(garbe, _garbe_limits, is_joint=True, of_ratios=True),
    }
)


@dataclass(frozen=True)
class DisparityEstimate:
    """Disparity of a metric over the groups of `by`, or its `worst` rate, as reported.

    `at_least` marks a lower bound. `low` and `high` are its limits, None without any; an upper limit of None with a
    lower one means that there is none.
    """

    figure: str
    metric: str
    by: tuple[str, ...]
    value: float | None
    at_least: bool = False
    note: str = ""
    low: float | None = None
    high: float | None = None
