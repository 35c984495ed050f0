"""Sampling by the classes' shares: each draw by itself, and the shares against a plain computation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.config.registry import SAMPLERS
from facelt.data.samplers import ClassPriorSampler, RngStream
from tests.data.test_samplers import plain_hash

COUNTS = (40, 10, 4, 0, 1)
LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS)
BY_SHARES = [name for name, sampler in SAMPLERS.items() if issubclass(sampler, ClassPriorSampler)]
QUICK = settings(max_examples=60, deadline=None)


def plain_shares(name: str, counts: list[int], epoch: int, epochs: int) -> list[Fraction]:
    """Probabilities of the classes as the papers write them; the square root of a count that is a square is exact."""
    instance = [Fraction(n, sum(counts)) for n in counts]
    balanced = [Fraction(1, len(counts))] * len(counts)
    over = Fraction(epoch, epochs)
    if name == "square_root":
        roots = [Fraction(float(n) ** 0.5) for n in counts]
        return [root / sum(roots) for root in roots]
    if name == "reversed":
        rarer = [Fraction(max(counts), n) for n in counts]
        return [weight / sum(rarer) for weight in rarer]
    if name == "progressive":
        return [(1 - over) * one + over * other for one, other in zip(instance, balanced, strict=True)]
    return balanced


def test_these_samplers_draw_by_shares():
    assert set(BY_SHARES) == {"class_balanced", "square_root", "progressive", "reversed"}


@pytest.mark.parametrize("name", BY_SHARES)
@QUICK
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 9), st.integers(10, 12))
def test_shares_are_the_papers(name, counts, epoch, epochs):
    # Labels 1, 3, 5, ... mixed up: classes in between have no images.
    labels = np.random.default_rng(0).permutation(np.repeat(2 * np.arange(len(counts)) + 1, counts))
    shares = SAMPLERS[name](labels, 1, seed=0, epochs=epochs).class_prior(epoch)
    np.testing.assert_allclose(
        shares, [float(share) for share in plain_shares(name, counts, epoch, epochs)], rtol=1e-12
    )


@pytest.mark.parametrize("name", BY_SHARES)
@QUICK
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=30).filter(lambda labels: max(labels) >= 0),
    st.integers(0, 2**40),
    st.integers(0, 5),
)
def test_each_draw_is_the_hash_of_its_position(name, labels, seed, epoch):
    sampler = SAMPLERS[name](np.array(labels), 1, seed, epochs=6)
    classes = [[i for i, label in enumerate(labels) if label == c] for c in sorted({c for c in labels if c >= 0})]
    shares = sampler.class_prior(epoch).tolist()
    expected = []
    for position in range(sum(map(len, classes))):
        left = (plain_hash(RngStream.CLASS_DRAW, seed, epoch, position) >> 11) / 2**53
        chosen = 0
        # A draw within a rounding of an edge may fall either way; the hash meets none in these examples.
        while chosen < len(classes) - 1 and left >= sum(shares[: chosen + 1]):
            chosen += 1
        within = (plain_hash(RngStream.IMAGE_DRAW, seed, epoch, position) >> 11) / 2**53
        expected.append(classes[chosen][int(within * len(classes[chosen]))])
    assert sampler.epoch_indices(epoch).tolist() == expected


@pytest.mark.parametrize("name", BY_SHARES)
@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_many_draws_come_as_the_shares_say(name, epoch):
    """Frequencies over 60 seeds lie within five standard deviations, of the classes and of the images within each."""
    draws = np.concatenate([SAMPLERS[name](LABELS, 5, seed, epochs=10).epoch_indices(epoch) for seed in range(60)])
    shares = [float(share) for share in plain_shares(name, [n for n in COUNTS if n], epoch, 10)]
    for label, share in zip([0, 1, 2, 4], shares, strict=True):
        spread = (share * (1 - share) / len(draws)) ** 0.5
        assert abs((LABELS[draws] == label).mean() - share) < 5 * spread
    seen = np.bincount(draws[LABELS[draws] == 1], minlength=50)[40:50]
    assert abs(seen - seen.mean()).max() < 5 * seen.mean() ** 0.5


def test_progressive_goes_from_every_image_alike_to_nearly_every_class_alike():
    sampler = SAMPLERS["progressive"](LABELS, 5, seed=0, epochs=200)
    np.testing.assert_allclose(sampler.class_prior(0), np.array([40, 10, 4, 1]) / 55)
    np.testing.assert_allclose(sampler.class_prior(199), [0.25] * 4, atol=0.003)
    np.testing.assert_allclose(sampler.class_prior(200), [0.25] * 4)
