"""Samplers of pairs of one identity, against a plain loop."""

from collections import Counter

import numpy as np
import pytest

from facelt.data.samplers import IdentityMateSampler, IdentitySampler, RngStream
from tests.data.test_samplers import plain_hash

# Identities of one, two and seven images; an image of the open set.
LABELS = np.array([4, 7, 4, 0, 7, 7, 7, -1, 7, 7, 7, 2, 2])


def plain_pairs(labels, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Returns the image of each identity and its mate, in the order of the epoch."""
    images = [[i for i, label in enumerate(labels) if label == c] for c in sorted({c for c in labels if c >= 0})]
    order = sorted(range(len(images)), key=lambda c: plain_hash(RngStream.IDENTITY_ORDER, seed, epoch, c))
    pairs = []
    for c in order:
        count = len(images[c])
        first = int((plain_hash(RngStream.IDENTITY_IMAGE, seed, epoch, c) >> 11) / 2**53 * count)
        step = 1 + int((plain_hash(RngStream.MATE_IMAGE, seed, epoch, c) >> 11) / 2**53 * (count - 1))
        pairs.append((images[c][first], images[c][(first + step) % count]))
    return pairs


@pytest.mark.parametrize("batch", [1, 3])
def test_pairs_equal_the_plain_loop(batch):
    first, mate = (kind(LABELS, batch, seed=3, epochs=9) for kind in (IdentitySampler, IdentityMateSampler))
    for epoch in range(9):
        drawn = list(zip(first.epoch_indices(epoch).tolist(), mate.epoch_indices(epoch).tolist(), strict=True))
        assert drawn == plain_pairs(LABELS.tolist(), 3, epoch)[: 4 // batch * batch]


def test_every_identity_comes_once_with_another_image_if_it_has_one():
    first, mate = (kind(LABELS, 2, seed=1, epochs=800) for kind in (IdentitySampler, IdentityMateSampler))
    seen = Counter()
    for epoch in range(800):
        index, other = first.epoch_indices(epoch), mate.epoch_indices(epoch)
        assert sorted(LABELS[index].tolist()) == [0, 2, 4, 7]
        np.testing.assert_array_equal(LABELS[index], LABELS[other])
        np.testing.assert_array_equal(index == other, LABELS[index] == 0)
        seen.update(zip(index.tolist(), other.tolist(), strict=True))
    # All 42 ordered pairs of seven images, and both of two.
    assert len([pair for pair in seen if LABELS[pair[0]] == 7]) == 42
    assert {pair for pair in seen if LABELS[pair[0]] == 4} == {(0, 2), (2, 0)}


def test_an_image_that_is_its_own_mate_has_another_augmentation():
    first, mate = (kind(LABELS, 4, seed=0, epochs=1) for kind in (IdentitySampler, IdentityMateSampler))
    seeds = np.stack([sampler.epoch_requests(0)[1] for sampler in (first, mate)])
    assert len(np.unique(seeds)) == seeds.size
