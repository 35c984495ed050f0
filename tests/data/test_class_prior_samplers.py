"""Class-prior samplers: every position against its hash, and the prior against the formulas."""

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
CLASS_PRIOR = [name for name, sampler in SAMPLERS.items() if issubclass(sampler, ClassPriorSampler)]
QUICK = settings(max_examples=60, deadline=None)


def plain_prior(name: str, counts: list[int], epoch: int, epochs: int) -> list[Fraction]:
    """Returns the class prior of the papers; the square root of a square number is exact."""
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
        return [(1 - over) * first + over * second for first, second in zip(instance, balanced, strict=True)]
    return balanced


def test_samplers_with_a_class_prior():
    assert set(CLASS_PRIOR) == {"class_balanced", "square_root", "progressive", "reversed"}


@pytest.mark.parametrize("name", CLASS_PRIOR)
@QUICK
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 9), st.integers(10, 12))
def test_the_class_prior_is_that_of_the_paper(name, counts, epoch, epochs):
    # Labels 1, 3, 5, ... in random order: classes in between have no images.
    labels = np.random.default_rng(0).permutation(np.repeat(2 * np.arange(len(counts)) + 1, counts))
    prior = SAMPLERS[name](labels, 1, seed=0, epochs=epochs).class_prior(epoch)
    np.testing.assert_allclose(prior, [float(share) for share in plain_prior(name, counts, epoch, epochs)], rtol=1e-12)


@pytest.mark.parametrize("name", CLASS_PRIOR)
@QUICK
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=30).filter(lambda labels: max(labels) >= 0),
    st.integers(0, 2**40),
    st.integers(0, 5),
)
def test_each_image_follows_from_the_hash_of_its_position(name, labels, seed, epoch):
    sampler = SAMPLERS[name](np.array(labels), 1, seed, epochs=6)
    classes = [[i for i, label in enumerate(labels) if label == c] for c in sorted({c for c in labels if c >= 0})]
    prior = sampler.class_prior(epoch).tolist()
    expected = []
    for position in range(sum(map(len, classes))):
        left = (plain_hash(RngStream.CLASS_DRAW, seed, epoch, position) >> 11) / 2**53
        chosen = 0
        # A number within rounding of an edge may fall on either side; none does in these examples.
        while chosen < len(classes) - 1 and left >= sum(prior[: chosen + 1]):
            chosen += 1
        within = (plain_hash(RngStream.IMAGE_DRAW, seed, epoch, position) >> 11) / 2**53
        expected.append(classes[chosen][int(within * len(classes[chosen]))])
    assert sampler.epoch_indices(epoch).tolist() == expected


@pytest.mark.parametrize("name", CLASS_PRIOR)
@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_frequencies_follow_the_class_prior(name, epoch):
    """Over 60 seeds the frequencies of classes, and of images in a class, lie within five standard deviations."""
    draws = np.concatenate([SAMPLERS[name](LABELS, 5, seed, epochs=10).epoch_indices(epoch) for seed in range(60)])
    prior = [float(share) for share in plain_prior(name, [n for n in COUNTS if n], epoch, 10)]
    for label, share in zip([0, 1, 2, 4], prior, strict=True):
        spread = (share * (1 - share) / len(draws)) ** 0.5
        assert abs((LABELS[draws] == label).mean() - share) < 5 * spread
    image_counts = np.bincount(draws[LABELS[draws] == 1], minlength=50)[40:50]
    assert abs(image_counts - image_counts.mean()).max() < 5 * image_counts.mean() ** 0.5


def test_progressive_goes_from_uniform_over_images_to_nearly_uniform_over_classes():
    sampler = SAMPLERS["progressive"](LABELS, 5, seed=0, epochs=200)
    np.testing.assert_allclose(sampler.class_prior(0), np.array([40, 10, 4, 1]) / 55)
    np.testing.assert_allclose(sampler.class_prior(199), [0.25] * 4, atol=0.003)
    np.testing.assert_allclose(sampler.class_prior(200), [0.25] * 4)
