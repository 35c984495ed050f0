"""Over- and under-sampling: frequencies of classes and images against plain counting."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.config.registry import SAMPLERS

LABELS = st.lists(st.integers(-1, 5), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0)
QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(LABELS, st.integers(0, 2**40), st.integers(0, 20))
def test_oversampling_repeats_until_every_class_has_as_many_as_the_largest(labels, seed, epoch):
    counts = Counter(label for label in labels if label >= 0)
    most = max(counts.values())
    drawn = SAMPLERS["oversample"](np.array(labels), 1, seed, epochs=30).epoch_indices(epoch).tolist()
    assert Counter(labels[index] for index in drawn) == dict.fromkeys(counts, most)
    times = Counter(drawn)
    for index, label in enumerate(labels):
        if label >= 0:
            assert most // counts[label] <= times[index] <= -(-most // counts[label])


@QUICK
@given(LABELS, st.integers(0, 2**40), st.integers(0, 20))
def test_undersampling_takes_as_many_of_every_class_as_the_smallest_has(labels, seed, epoch):
    counts = Counter(label for label in labels if label >= 0)
    drawn = SAMPLERS["undersample"](np.array(labels), 1, seed, epochs=30).epoch_indices(epoch).tolist()
    assert Counter(labels[index] for index in drawn) == dict.fromkeys(counts, min(counts.values()))
    assert len(set(drawn)) == len(drawn)


@QUICK
@given(LABELS, st.integers(2, 9), st.integers(0, 2**40))
def test_whole_batches_are_the_front_of_the_list(labels, batch, seed):
    for name in ("oversample", "undersample"):
        whole = SAMPLERS[name](np.array(labels), 1, seed, epochs=3).epoch_indices(2)
        if len(whole) >= batch:
            part = SAMPLERS[name](np.array(labels), batch, seed, epochs=3).epoch_indices(2)
            assert part.tolist() == whole[: len(whole) // batch * batch].tolist()


def test_undersampling_shows_every_image_over_the_epochs():
    labels = np.repeat(np.arange(3), (30, 8, 4))
    sampler = SAMPLERS["undersample"](labels, 4, seed=1, epochs=400)
    times = np.bincount(np.concatenate([sampler.epoch_indices(epoch) for epoch in range(400)]), minlength=42)
    for images, expected in ((times[:30], 400 * 4 / 30), (times[30:38], 400 * 4 / 8)):
        assert abs(images - expected).max() < 5 * expected**0.5
    assert times[38:].tolist() == [400] * 4


@pytest.mark.parametrize("name", ["oversample", "undersample"])
def test_classes_come_mixed(name):
    """No batch of 32 out of four classes is far from eight of each."""
    labels = np.repeat(np.arange(4), (100, 90, 80, 64))
    batches = labels[SAMPLERS[name](labels, 32, seed=2, epochs=1).epoch_indices(0)].reshape(-1, 32)
    share = np.stack([(batches == label).sum(axis=1) for label in range(4)])
    assert share.min() > 0
    assert share.max() < 20
