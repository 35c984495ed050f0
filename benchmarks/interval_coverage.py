"""Coverage of the 95% intervals of `facelt.stats.intervals`, measured on simulated people with known error rates.

    python benchmarks/interval_coverage.py [--draws 300] [--replicates 100] [--seed 0] [--workers 2]

Simulated people differ in their error rate and in their number of images, and the trials of one image are correlated
as well, as in face sets. For each kind of interval and 5, 8, 10, 15 and 30 identities per group, the script prints the
mean coverage over the worlds and, in parentheses, the lowest: first the table of docs/auditing.md, then the rows of
`MEASURED_COVERAGE` in facelt/stats/intervals.py. The size of a test at 5% is what is missing to 100% in the row of its
limits; the rows at 99.5% are the limits and tests that Holm's method leaves at 5% to the first of ten differences.

R replicates, I identities, M images.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from facelt.stats.differences import RateDifferences
from facelt.stats.disparity import DISPARITY_MEASURES
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals

# Draws the numbers of images of I identities: int64 [I].
ImageCounts = Callable[[np.random.Generator, int], np.ndarray]
# Lower limit, upper limit, true value.
Limits = tuple[float, float, float]

IDENTITIES = (5, 8, 10, 15, 30)
# Level of the first of ten tests by Holm's method.
_ADJUSTED_LEVEL = 0.995
# Kinds of intervals and what they are of; the percentile bootstraps are for comparison.
KINDS = MappingProxyType(
    {
        "search": "a rate of searches or mated pairs",
        "search_difference": "the difference of two groups' rates",
        "paired_difference": "the difference of two models on one group",
        "search_difference_995": "the difference of two groups' rates, at 99.5%",
        "paired_difference_995": "the difference of two models on one group, at 99.5%",
        "gap_four": "the gap of four groups with equal rates",
        "gini_four": "the Gini coefficient of four groups, one with twice the rate",
        "search_percentile": "a rate of searches, percentile bootstrap",
        "pair": "an FMR within a group",
        "pair_across": "an FMR across two groups",
        "pair_difference": "the difference of two groups' FMR",
        "pair_difference_995": "the difference of two groups' FMR, at 99.5%",
        "pair_percentile": "an FMR within a group, percentile bootstrap of both sides",
    }
)


def even_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """Returns 10 to 59 images per person, as in FaceScrub's MegaFace probes: [I]."""
    return random.integers(10, 60, identities)


def uneven_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """Returns 2 to 200 images per person, log-normal around 12, so that a few people have most of the pairs: [I]."""
    return np.clip(np.rint(random.lognormal(2.5, 0.9, identities)), 2, 200).astype(np.int64)


@dataclass(frozen=True)
class SearchWorld:
    """Searches or mated pairs: every ordered pair of two images of a person is a trial.

    A person's error rate is beta distributed around `rate` with the intraclass `correlation`, an image's around its
    person's with 1 / 6.
    """

    rate: float
    correlation: float
    images: ImageCounts

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns errors and trials of each identity, [I] each."""
        error_MI, trial_I = self.draw_models(random, identities, (1.0,))
        return error_MI[0], trial_I

    def draw_models(
        self, random: np.random.Generator, identities: int, factors: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns errors of several models on the same people, [models,I], whose rates are `factors` of the world's.

        The models find the same people difficult, but different images of them. Also returns the trials, [I].
        """
        image_I = self.images(random, identities)
        person_I = _draw_rates(random, np.full(identities, self.rate), self.correlation)
        owner_M = np.repeat(np.arange(identities), image_I)
        errors = []
        for factor in factors:
            rate_M = factor * _draw_rates(random, person_I[owner_M], 1 / 6)
            error_M = random.binomial(image_I[owner_M] - 1, rate_M)
            errors.append(np.bincount(owner_M, weights=error_M, minlength=identities))
        return np.stack(errors), image_I * (image_I - 1.0)


@dataclass(frozen=True)
class PairWorld:
    """Non-mated pairs: the log odds of a false match are `center` plus offsets of both people and of their pair.

    `person` and `pair` are the standard deviations of the offsets.
    """

    center: float
    person: float
    pair: float
    images: ImageCounts

    @cached_property
    def rate(self) -> float:
        """Expected rate over all people, by Gauss-Hermite quadrature."""
        node_K, weight_K = np.polynomial.hermite_e.hermegauss(80)
        spread = np.sqrt(2 * self.person**2 + self.pair**2)
        return float(weight_K @ _logistic(self.center + spread * node_K) / weight_K.sum())

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns errors and trials of every two people, symmetric [I,I] with a zero diagonal."""
        image_I = self.images(random, identities)
        offset_I = random.normal(0, self.person, identities)
        offset_II = offset_I[:, None] + offset_I + random.normal(0, self.pair, (identities, identities))
        trial_II = np.triu(np.outer(image_I, image_I), 1)
        error_II = random.binomial(trial_II, _logistic(self.center + offset_II))
        return (error_II + error_II.T).astype(np.float64), (trial_II + trial_II.T).astype(np.float64)


def _draw_rates(random: np.random.Generator, mean: np.ndarray, correlation: float) -> np.ndarray:
    """Draws beta distributed rates with this mean and variance mean (1 - mean) correlation."""
    strength = (1 - correlation) / correlation
    mean = np.clip(mean, 1e-12, 1 - 1e-12)
    return random.beta(mean * strength, (1 - mean) * strength)


def _logistic(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


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


def measure_coverage(
    world: SearchWorld | PairWorld, identities: int, *, draws: int, seed: int, level: float = 0.95, replicates: int = 0
) -> dict[str, float]:
    """Returns the fraction of draws whose interval contains the true value, by kind.

    The bootstraps are only measured with `replicates`. An undefined interval contains nothing.
    """
    random = np.random.default_rng(seed)
    limits_of = search_limits if isinstance(world, SearchWorld) else pair_limits
    covered: dict[str, int] = {}
    for _ in range(draws):
        for kind, (low, high, truth) in limits_of(world, random, identities, level, replicates):
            covered[kind] = covered.get(kind, 0) + bool(low <= truth <= high)
    return {kind: count / draws for kind, count in covered.items()}


def search_limits(
    world: SearchWorld, random: np.random.Generator, identities: int, level: float, replicates: int
) -> Iterator[tuple[str, Limits]]:
    """Yields the limits of each kind for one draw of two groups and two models.

    The second group has twice the world's error rate, the second model 0.7 times.
    """
    double = SearchWorld(2 * world.rate, world.correlation, world.images)
    (error_I, model_error_I), trial_I = world.draw_models(random, identities, (1.0, 0.7))
    other_error_I, other_trial_I = double.draw(random, identities)
    errors, trials = _disjoint([error_I, other_error_I]), _disjoint([trial_I, other_trial_I])
    # A group's own interval is computed without the other: a group without errors takes no correlation from it.
    single = rate_intervals(ClusteredCounts.by_identity(error_I, trial_I), level=level)
    yield "search", (single.low_F[0], single.high_F[0], world.rate)
    groups = _group_intervals(errors, trials, level)
    models = rate_intervals(ClusteredCounts.by_identity([error_I, model_error_I], [trial_I, trial_I]), level=level)
    for at_level, suffix in ((level, ""), (_ADJUSTED_LEVEL, "_995")):
        yield f"search_difference{suffix}", (*_difference(groups, at_level), -world.rate)
        yield f"paired_difference{suffix}", (*_difference(models, at_level), 0.3 * world.rate)
    alike = [world.draw(random, identities) for _ in range(3)]
    for kind, (first_error_I, first_trial_I), measure, truth in (
        ("gap_four", (error_I, trial_I), "gap", 0.0),
        # Six pairs: three differ by the factor 2, whose coefficient is 1/3, with weights 3 : 3 : 3 : 2 : 2 : 2.
        ("gini_four", (other_error_I, other_trial_I), "gini", 9 / 15 / 3),
    ):
        counts = [(first_error_I, first_trial_I), *alike]
        four = _group_intervals(*(_disjoint([count[k] for count in counts]) for k in (0, 1)), level)
        limits = DISPARITY_MEASURES[measure].limits([(four, range(4))], level=level, alpha=0.5)
        yield kind, (*limits, truth)
    if replicates:
        options = {"replicates": replicates, "seed": int(random.integers(1 << 31))}
        yield "search_percentile", (*_percentile_limits(error_I, trial_I, level=level, **options), world.rate)


def pair_limits(
    world: PairWorld, random: np.random.Generator, identities: int, level: float, replicates: int
) -> Iterator[tuple[str, Limits]]:
    """Yields the limits of each kind for one draw of the non-mated pairs of two groups with equal rates."""
    error_II, trial_II = world.draw(random, 2 * identities)
    group = slice(0, identities)
    single = _pair_intervals(error_II[None, group, group], trial_II[None, group, group], level)
    yield "pair", (single.low_F[0], single.high_F[0], world.rate)
    is_first_I = np.arange(2 * identities) < identities
    masks = np.stack(
        [np.outer(is_first_I, is_first_I), np.outer(~is_first_I, ~is_first_I), is_first_I[:, None] != is_first_I]
    )
    groups = _pair_intervals(error_II * masks, trial_II * masks, level)
    yield "pair_across", (groups.low_F[2], groups.high_F[2], world.rate)
    for at_level, suffix in ((level, ""), (_ADJUSTED_LEVEL, "_995")):
        yield f"pair_difference{suffix}", (*_difference(groups, at_level), 0.0)
    if replicates:
        seed = int(random.integers(1 << 31))
        drawn_RI = np.random.default_rng(seed).multinomial(identities, np.full(identities, 1 / identities), replicates)
        weight_RI = drawn_RI.astype(np.float64)
        error_R, trial_R = (
            ((weight_RI @ count_II[group, group]) * weight_RI).sum(axis=1) for count_II in (error_II, trial_II)
        )
        tail = (1 - level) / 2
        low, high = np.quantile(error_R[trial_R > 0] / trial_R[trial_R > 0], [tail, 1 - tail])
        yield "pair_percentile", (low, high, world.rate)


def _percentile_limits(
    error_I: np.ndarray, trial_I: np.ndarray, *, replicates: int, level: float, seed: int
) -> tuple[float, float]:
    """Returns percentile limits of a rate of searches by resampling identities with replacement.

    Cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8 and 5.3).
    """
    identities = len(trial_I)
    drawn_RI = np.random.default_rng(seed).multinomial(identities, np.full(identities, 1 / identities), size=replicates)
    tail = (1 - level) / 2
    low, high = np.quantile((drawn_RI @ error_I) / (drawn_RI @ trial_I), [tail, 1 - tail])
    return float(low), float(high)


def _disjoint(counts: list[np.ndarray]) -> np.ndarray:
    """Returns counts of groups of different people, [G,I]."""
    return np.stack([np.concatenate([count * (g == k) for k, count in enumerate(counts)]) for g in range(len(counts))])


def _group_intervals(error_GI: np.ndarray, trial_GI: np.ndarray, level: float) -> RateIntervals:
    pooled = ClusteredCounts.by_identity(error_GI.sum(axis=0), trial_GI.sum(axis=0))
    return rate_intervals(ClusteredCounts.by_identity(error_GI, trial_GI), level=level, pooled=pooled)


def _difference(intervals: RateIntervals, level: float) -> tuple[float, float]:
    (low,), (high,) = RateDifferences.between(intervals, [0], [1]).limits(level)
    return low, high


def _pair_intervals(error_FII: np.ndarray, trial_FII: np.ndarray, level: float) -> RateIntervals:
    totals = error_FII.sum(axis=(1, 2)) / 2, trial_FII.sum(axis=(1, 2)) / 2
    return rate_intervals(ClusteredCounts(*totals, error_FII.sum(axis=2), trial_FII.sum(axis=2)), level=level)


def main() -> None:
    """Measures all worlds at all numbers of identities and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--replicates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    coverages: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in IDENTITIES} for kind in KINDS}
    worlds = list(enumerate((*SEARCH_WORLDS, *PAIR_WORLDS)))
    with ProcessPoolExecutor(options.workers) as executor:
        running = {
            (n, index): executor.submit(
                measure_coverage, world, n, seed=options.seed + 1000 * n + index, draws=options.draws,
                replicates=options.replicates,
            )
            for n in IDENTITIES for index, world in worlds
        }  # fmt: skip
        for (n, index), future in running.items():
            print(n, worlds[index][1], {kind: round(share, 4) for kind, share in future.result().items()}, flush=True)
            for kind, coverage in future.result().items():
                coverages[kind][n].append(coverage)

    table = {
        kind: {n: (round(float(np.mean(row[n])), 4), round(min(row[n]), 4)) for n in IDENTITIES}
        for kind, row in coverages.items()
    }
    print(f"\n| 95% interval of | {' | '.join(f'{n} identities' for n in IDENTITIES)} |")
    print("|---" * (len(IDENTITIES) + 1) + "|")
    for kind, row in table.items():
        cells = [f"{100 * mean:.1f} ({100 * lowest:.1f})" for mean, lowest in row.values()]
        print(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    print()
    for kind, row in table.items():
        print(f'"{kind}": {row},')


if __name__ == "__main__":
    main()
