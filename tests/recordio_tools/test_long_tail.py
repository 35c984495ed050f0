"""Long-tailed selections against a plain computation in decimals and the published counts."""

import decimal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recordio_tools.deterministic_random import hash64
from recordio_tools.errors import RecordIOError
from recordio_tools.long_tail import (
    exponential_counts,
    pareto_counts,
    sample_exponential,
    sample_pareto,
    sample_proportional,
)

DIGITS = decimal.Context(prec=40)


def source(counts: list[int], first_key: int = 1) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.arange(first_key, first_key + len(labels)), labels


def waiting_times(keys, labels, seed, power) -> list[tuple[decimal.Decimal, int]]:
    """Returns (time, key) of each image, to 40 digits."""
    counts = np.bincount(labels).tolist()
    times = []
    for key, label, draw in zip(keys.tolist(), labels.tolist(), hash64(keys, seed).tolist(), strict=True):
        uniform = decimal.Decimal((draw >> 11) + 1) / decimal.Decimal(1 << 53)
        weight = DIGITS.power(decimal.Decimal(counts[label]), decimal.Decimal(str(power)))
        times.append((-uniform.ln(DIGITS) / weight, key))
    return sorted(times)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_proportional_equals_a_plain_computation(power):
    keys, labels = source([90, 1, 40, 0, 7, 150, 2, 2, 1, 30])
    selection = sample_proportional(keys, labels, 120, seed=5, power=power)
    assert sorted(selection.keys.tolist()) == sorted(key for _, key in waiting_times(keys, labels, 5, power)[:120])
    np.testing.assert_array_equal(selection.labels, labels[selection.keys - 1])
    kept = np.unique(selection.labels)
    np.testing.assert_array_equal(kept[selection.new_labels], selection.labels)
    assert selection.num_identities == len(kept)


def test_an_image_is_drawn_with_the_weight_of_its_identity():
    # One image of three: identity 0 has two images of weight 2, identity 1 one of weight 1, so it gets 1 draw in 5.
    keys, labels = source([2, 1])
    draws = [sample_proportional(keys, labels, 1, seed).labels[0] for seed in range(3000)]
    assert np.mean(draws) == pytest.approx(1 / 5, abs=0.03)  # four standard deviations


def test_proportional_keeps_the_head_longer_than_an_even_draw():
    keys, labels = source([1] * 500 + [50] * 10)
    even, tailed = (sample_proportional(keys, labels, 300, 0, power=power) for power in (0.0, 1.0))
    assert np.count_nonzero(even.labels >= 500) < np.count_nonzero(tailed.labels >= 500)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any), st.integers(0, 2**64 - 1), st.data())
def test_the_order_of_the_source_does_not_matter(counts, seed, data):
    keys, labels = source(counts)
    order = np.array(data.draw(st.permutations(range(len(keys)))))
    images = data.draw(st.integers(1, len(keys)))
    identities = data.draw(st.none() | st.integers(1, min(images, np.count_nonzero(counts))))
    try:
        first = sample_proportional(keys, labels, images, seed, identities=identities)
    except RecordIOError:  # the remaining identities have fewer images than requested
        assume(False)
    second = sample_proportional(keys[order], labels[order], images, seed, identities=identities)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(first.keys) == len(set(first.keys.tolist())) == images
    assert identities is None or first.num_identities == identities


def test_the_identities_with_the_most_drawn_images_stay():
    keys, labels = source([60, 3, 50, 2, 40, 1, 1, 30])
    free = sample_proportional(keys, labels, 60, 1)
    forced = sample_proportional(keys, labels, 60, 1, identities=3)
    drawn = np.bincount(free.labels, minlength=8)
    ties = hash64(np.arange(8), 1, 1).tolist()
    most = sorted(range(8), key=lambda label: (-drawn[label], ties[label]))[:3]
    assert np.unique(forced.labels).tolist() == sorted(most)
    times = [key for _, key in waiting_times(keys, labels, 1, 1) if labels[key - 1] in most]
    assert sorted(forced.keys.tolist()) == sorted(times[:60])


def test_more_identities_than_are_drawn_each_keep_their_earliest_image():
    keys, labels = source([1000] + [1] * 30)
    assert sample_proportional(keys, labels, 40, 0).num_identities < 20
    forced = sample_proportional(keys, labels, 40, 0, identities=31)
    assert np.bincount(forced.labels).tolist() == [10] + [1] * 30
    head = [key for _, key in waiting_times(keys, labels, 0, 1) if key <= 1000][:10]
    assert sorted(forced.keys[:10].tolist()) == sorted(head)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"images": 0}, "images must be in 1..6"),
        ({"images": 7}, "7 images cannot be drawn from 6"),
        ({"images": 3, "identities": 4}, "the source has 3 with images"),
        ({"images": 3, "identities": 0}, "0 identities cannot be kept"),
        ({"images": 6, "identities": 2}, "cannot be drawn within 2 identities"),
        ({"images": 2, "identities": 3}, "cannot be drawn within 3 identities"),
        ({"images": 3, "power": -1.0}, "power must be"),
        ({"images": 3, "power": float("nan")}, "power must be"),
        ({"images": 3, "seed": -1}, "seed must be"),
    ],
)
def test_too_small_a_source_is_refused(options, reason):
    keys, labels = source([3, 0, 1, 2])
    with pytest.raises(RecordIOError, match=reason):
        sample_proportional(keys, labels, **{"seed": 0, **options})


def test_exponential_counts_are_those_of_cifar_lt():
    assert exponential_counts(10, 100, 5000).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert exponential_counts(10, 50, 5000).tolist() == [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
    assert exponential_counts(10, 200, 5000).tolist() == [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25]
    totals = {10: 19573, 20: 15907, 50: 12608, 100: 10847, 200: 9502}
    for imbalance, total in totals.items():
        assert exponential_counts(100, imbalance, 500).sum() == total
    assert exponential_counts(1, 100, 500).tolist() == [500]


def test_exponential_selections_of_one_seed_lie_within_each_other():
    keys, labels = source([100] * 12)
    large, small = (sample_exponential(keys, labels, 4, imbalance) for imbalance in (10, 100))
    np.testing.assert_array_equal(np.bincount(large.labels), exponential_counts(12, 10, 100))
    np.testing.assert_array_equal(np.bincount(small.labels), exponential_counts(12, 100, 100))
    assert set(small.keys) < set(large.keys)


def test_pareto_counts_are_near_imagenet_lt():
    counts = pareto_counts(1000, 6, 1280, 5)
    assert (counts[0], counts[-1]) == (1280, 5)
    assert (np.diff(counts) <= 0).all()
    # 115,846 images, 385 classes above 100 images and 136 below 20 are published; the lists follow no stated formula.
    assert abs(counts.sum() - 115_846) < 0.06 * 115_846
    assert abs(np.count_nonzero(counts > 100) - 385) < 25
    assert abs(np.count_nonzero(counts < 20) - 136) < 5
    # The quantiles themselves, from the survival function (1 + x) ^ -6.
    excess = (1000 / np.arange(1, 1001)) ** (1 / 6) - 1
    np.testing.assert_allclose(counts, 5 + 1275 * excess / excess[0], atol=0.5 + 1e-6)


def test_pareto_gives_the_largest_counts_to_the_largest_identities():
    keys, labels = source([10, 200, 50, 0, 100, 30])
    selection = sample_pareto(keys, labels, 0, alpha=1.0, maximum=60, minimum=2)
    counts = np.bincount(selection.labels, minlength=6)
    np.testing.assert_array_equal(counts[[1, 4, 2, 5, 0]], pareto_counts(5, 1.0, 60, 2))
    assert sample_pareto(keys, labels, 0, maximum=60, minimum=2, identities=2).num_identities == 2


@pytest.mark.parametrize(
    ("sample", "options", "reason"),
    [
        (sample_pareto, {"alpha": 0}, "alpha must be"),
        (sample_pareto, {"minimum": 9, "maximum": 8}, "min <= max"),
        (sample_pareto, {"minimum": 4, "maximum": 5}, "lower --max"),
        (sample_exponential, {"imbalance": 0.5}, "imbalance and max"),
        (sample_exponential, {"maximum": 0}, "imbalance and max"),
        (sample_exponential, {"imbalance": 1}, "identity 0 has 3 images, the profile needs 5"),
        (sample_exponential, {"identities": 3}, "the source has 2"),
    ],
)
def test_impossible_profiles_are_refused(sample, options, reason):
    keys, labels = source([3, 5])
    with pytest.raises(RecordIOError, match=reason):
        sample(keys, labels, 0, **options)
