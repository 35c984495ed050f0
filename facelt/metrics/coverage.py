"""How often the intervals cover the truth, by simulation; `facelt.metrics.coverage_table` keeps what came out.

R replicates, I identities.
"""

from collections.abc import Iterator
from types import MappingProxyType

import numpy as np

from facelt.metrics import disparity
from facelt.metrics.clustered import RateIntervals, TouchedCounts, rate_intervals
from facelt.metrics.intervals import bootstrap_rates
from facelt.metrics.resampling import bias_corrected_limits, identity_weights, replicate_rates
from facelt.metrics.simulate import PairWorld, SearchWorld, even_images, uneven_images

SEARCH_WORLDS = (
    SearchWorld(0.05, 0.05, even_images),
    SearchWorld(0.05, 0.10, even_images),
    SearchWorld(0.05, 0.10, uneven_images),
    SearchWorld(0.15, 0.10, even_images),
    SearchWorld(0.30, 0.10, even_images),
    SearchWorld(0.30, 0.10, uneven_images),
)
PAIR_WORLDS = (
    PairWorld(-6.5, 0.5, 0.8, even_images),
    PairWorld(-6.5, 0.8, 0.8, even_images),
    PairWorld(-6.5, 0.5, 0.8, uneven_images),
    PairWorld(-4.0, 0.5, 0.8, even_images),
)

# What was measured: the interval, and what it is of. The percentile bootstraps are there to be compared with.
KINDS = MappingProxyType(
    {
        "search": "a rate of searches or mated pairs",
        "search_difference": "the difference of two groups' rates",
        "paired_difference": "the difference of two models on one group",
        "gap_bootstrap": "the gap of two groups, bias-corrected bootstrap",
        "search_percentile": "a rate of searches, percentile bootstrap",
        "pair": "an FMR within a group",
        "pair_across": "an FMR across two groups",
        "pair_difference": "the difference of two groups' FMR",
        "pair_percentile": "an FMR within a group, percentile bootstrap of both sides",
    }
)


# The lower limit, the upper one and the truth.
Limits = tuple[float, float, float]


def search_limits(
    world: SearchWorld, random: np.random.Generator, identities: int, level: float, replicates: int
) -> Iterator[tuple[str, Limits]]:
    """One draw of two groups and two models: for each kind its low and high limit and the truth between them.

    The second group's errors are twice as frequent as the world's, the second model's 0.7 times.
    """
    twice = SearchWorld(2 * world.rate, world.likeness, world.images)
    (own_I, model_I), trial_I = world.draw_models(random, identities, (1.0, 0.7))
    other_I, other_trial_I = twice.draw(random, identities)
    nobody_I = np.zeros(identities)
    errors = np.stack([np.r_[own_I, nobody_I], np.r_[nobody_I, other_I]])
    trials = np.stack([np.r_[trial_I, nobody_I], np.r_[nobody_I, other_trial_I]])
    # Each interval knows its own group alone, so that an error-free one has nothing beside it to learn from.
    alone = rate_intervals(TouchedCounts.of_searches(own_I, trial_I), level=level)
    yield "search", (alone.low_F[0], alone.high_F[0], world.rate)
    groups = rate_intervals(TouchedCounts.of_searches(errors, trials), level=level)
    yield "search_difference", (*groups.difference(0, 1), -world.rate)
    models = rate_intervals(TouchedCounts.of_searches([own_I, model_I], [trial_I, trial_I]), level=level)
    yield "paired_difference", (*models.difference(0, 1), 0.3 * world.rate)
    if replicates:
        options = {"replicates": replicates, "seed": int(random.integers(1 << 31))}
        low_F, high_F = bootstrap_rates(own_I, trial_I, level=level, **options)
        yield "search_percentile", (low_F[0], high_F[0], world.rate)
        weight_RI = identity_weights(np.repeat([0, 1], identities), **options)
        gap_R = disparity.gap(replicate_rates(errors, trials, weight_RI))
        gap = float(disparity.gap(groups.rate_F))
        yield (
            "gap_bootstrap",
            (*bias_corrected_limits(gap_R, gap, level=level, freedom=groups.freedom_F.min()), world.rate),
        )


def pair_limits(
    world: PairWorld, random: np.random.Generator, identities: int, level: float, replicates: int
) -> Iterator[tuple[str, Limits]]:
    """One draw of two groups of non-mated pairs alike, for each kind its low and high limit and the truth."""
    error_II, trial_II = world.draw(random, 2 * identities)
    inside = slice(0, identities)
    alone = _pair_intervals(error_II[None, inside, inside], trial_II[None, inside, inside], level)
    yield "pair", (alone.low_F[0], alone.high_F[0], world.rate)
    first_I = np.arange(2 * identities) < identities
    masks = np.stack([np.outer(first_I, first_I), np.outer(~first_I, ~first_I), first_I[:, None] != first_I])
    groups = _pair_intervals(error_II * masks, trial_II * masks, level)
    yield "pair_across", (groups.low_F[2], groups.high_F[2], world.rate)
    yield "pair_difference", (*groups.difference(0, 1), 0.0)
    if replicates:
        seed = int(random.integers(1 << 31))
        drawn_RI = np.random.default_rng(seed).multinomial(identities, np.full(identities, 1 / identities), replicates)
        weight_RI = drawn_RI.astype(np.float64)
        error_R, trial_R = (
            ((weight_RI @ count_II[inside, inside]) * weight_RI).sum(axis=1) for count_II in (error_II, trial_II)
        )
        tail = (1 - level) / 2
        yield (
            "pair_percentile",
            (*np.quantile(error_R[trial_R > 0] / trial_R[trial_R > 0], [tail, 1 - tail]), world.rate),
        )


def _pair_intervals(error_FII: np.ndarray, trial_FII: np.ndarray, level: float) -> RateIntervals:
    sums = error_FII.sum(axis=(1, 2)) / 2, trial_FII.sum(axis=(1, 2)) / 2
    return rate_intervals(TouchedCounts(*sums, error_FII.sum(axis=2), trial_FII.sum(axis=2)), level=level)


def measure(
    world: SearchWorld | PairWorld, identities: int, *, draws: int, seed: int, level: float = 0.95, replicates: int = 0
) -> dict[str, float]:
    """The share of draws whose interval covered the truth, by kind; the bootstraps only with `replicates`.

    An interval that could not be computed covers nothing.
    """
    random = np.random.default_rng(seed)
    limits_of = search_limits if isinstance(world, SearchWorld) else pair_limits
    covered: dict[str, int] = {}
    for _ in range(draws):
        for kind, (low, high, truth) in limits_of(world, random, identities, level, replicates):
            covered[kind] = covered.get(kind, 0) + bool(low <= truth <= high)
    return {kind: count / draws for kind, count in covered.items()}
