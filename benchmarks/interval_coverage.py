"""Made-up people with known error rates, to see how often an interval covers the truth.

People differ in how often they are mistaken and in how many images they have, and the trials of one image are alike
again, as in the face sets this package measures. I identities, M images.

How often the intervals cover the truth, by simulation; `facelt.stats.coverage` keeps what came out.

R replicates, I identities.

How often intervals of 95% cover the truth, at 7, 14, 30 and 80 identities a group.

python benchmarks/interval_coverage.py [--draws 2000] [--replicates 400] [--seed 0]

Prints, for each kind of interval, the mean over the worlds and the lowest of them: first as rows of the table in
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.stats import disparity
from facelt.stats.intervals import ClusteredCounts, RateIntervals, rate_intervals
from facelt.stats.resampling import bias_corrected_limits, bootstrap_rates, identity_weights, replicate_rates

# Draws the images of so many identities: int64 [I].
ImageCounts = Callable[[np.random.Generator, int], np.ndarray]


def even_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """10 to 59 images a person, as in FaceScrub's MegaFace probes: [I]."""
    return random.integers(10, 60, identities)


def uneven_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """2 to 200 images a person, log-normal about 12: a few people have most of the pairs. [I]."""
    return np.clip(np.rint(random.lognormal(2.5, 0.9, identities)), 2, 200).astype(np.int64)


@dataclass(frozen=True)
class SearchWorld:
    """Searches, or mated pairs: every two images of a person, either of them searched with, may go wrong.

    A person's rate is drawn about `rate` with the intraclass correlation `likeness` (beta), an image's about its
    person's with 1 / 6.
    """

    rate: float
    likeness: float
    images: ImageCounts

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of each identity, [I] each."""
        error_MI, trial_I = self.draw_models(random, identities, (1.0,))
        return error_MI[0], trial_I

    def draw_models(
        self, random: np.random.Generator, identities: int, shares: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors of several models on the same people, [models,I], and trials, [I]: `shares` of the rates are theirs.

        Who is difficult for one model is so for the others; which of their images are, differs.
        """
        image_I = self.images(random, identities)
        person_I = _beta(random, np.full(identities, self.rate), self.likeness)
        owner_M = np.repeat(np.arange(identities), image_I)
        errors = []
        for share in shares:
            rate_M = share * _beta(random, person_I[owner_M], 1 / 6)
            wrong_M = random.binomial(image_I[owner_M] - 1, rate_M)
            errors.append(np.bincount(owner_M, weights=wrong_M, minlength=identities))
        return np.stack(errors), image_I * (image_I - 1.0)


@dataclass(frozen=True)
class PairWorld:
    """Non-mated pairs: the log odds of a false match are the sum of both people's offsets and one of their pair.

    `person` and `pair` are the standard deviations of the offsets, `middle` the log odds without them.
    """

    middle: float
    person: float
    pair: float
    images: ImageCounts

    @property
    def rate(self) -> float:
        """The expected rate over all people, by Gauss-Hermite quadrature."""
        node_K, weight_K = np.polynomial.hermite_e.hermegauss(80)
        spread = np.sqrt(2 * self.person**2 + self.pair**2)
        return float(weight_K @ _logistic(self.middle + spread * node_K) / weight_K.sum())

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of each two people, symmetric [I,I] each with nothing on the diagonal."""
        image_I = self.images(random, identities)
        offset_I = random.normal(0, self.person, identities)
        offset_II = offset_I[:, None] + offset_I + random.normal(0, self.pair, (identities, identities))
        trial_II = np.triu(np.outer(image_I, image_I), 1)
        error_II = random.binomial(trial_II, _logistic(self.middle + offset_II))
        return (error_II + error_II.T).astype(np.float64), (trial_II + trial_II.T).astype(np.float64)


def _beta(random: np.random.Generator, mean: np.ndarray, likeness: float) -> np.ndarray:
    """Rates about `mean` with variance mean (1 - mean) likeness; the smallest number for a mean of 0."""
    strength = (1 - likeness) / likeness
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
    alone = rate_intervals(ClusteredCounts.by_identity(own_I, trial_I), level=level)
    yield "search", (alone.low_F[0], alone.high_F[0], world.rate)
    groups = rate_intervals(ClusteredCounts.by_identity(errors, trials), level=level)
    yield "search_difference", (*groups.difference(0, 1), -world.rate)
    models = rate_intervals(ClusteredCounts.by_identity([own_I, model_I], [trial_I, trial_I]), level=level)
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
            (*bias_corrected_limits(gap_R, gap, level=level, dof=groups.dof_F.min()), world.rate),
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
    return rate_intervals(ClusteredCounts(*sums, error_FII.sum(axis=2), trial_FII.sum(axis=2)), level=level)


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


IDENTITIES = (7, 14, 30, 80)


def main() -> None:
    """Measures all worlds at all numbers of identities and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    shares: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in IDENTITIES} for kind in KINDS}
    for n in IDENTITIES:
        for w, world in enumerate((*SEARCH_WORLDS, *PAIR_WORLDS)):
            found = measure(
                world, n, draws=options.draws, seed=options.seed + 1000 * n + w, replicates=options.replicates
            )
            print(n, world, {kind: round(share, 4) for kind, share in found.items()}, flush=True)
            for kind, share in found.items():
                shares[kind][n].append(share)

    table = {
        kind: {n: (round(float(np.mean(of_n[n])), 4), round(min(of_n[n]), 4)) for n in IDENTITIES}
        for kind, of_n in shares.items()
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
