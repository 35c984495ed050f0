"""The training/validation split: every image once, no class lost, the requested fraction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.data.samplers import RngStream, hash_words, split_test_images, train_validation_split


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=60), st.floats(0, 0.99), st.integers(0, 2**40))
def test_every_image_once_and_no_class_lost(labels, fraction, seed):
    labels = np.array(labels, np.int64)
    train, validation = train_validation_split(labels, fraction, seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert set(labels[train].tolist()) == set(labels.tolist())
    again = train_validation_split(labels, fraction, seed)
    assert train.tolist() == again[0].tolist()


def test_the_fraction_is_kept_on_large_classes_and_seeds_differ():
    labels = np.repeat(np.arange(10), 1000)
    train, validation = train_validation_split(labels, 0.2, 0)
    assert 1850 < len(validation) < 2150
    assert set(validation.tolist()) != set(train_validation_split(labels, 0.2, 1)[1].tolist())
    assert len(train_validation_split(labels, 0.0, 0)[1]) == 0
    assert len(train) + len(validation) == 10_000


def test_identities_with_one_image_stay_in_training():
    assert len(train_validation_split(np.arange(500), 0.9, 0)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="must be in"):
        train_validation_split(np.arange(3), fraction, 0)


def test_each_class_gives_a_tenth_but_at_least_one_and_never_all():
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(6), [90, 40, 20, 3, 2, 1]))
    rest, test = split_test_images(labels, 0.1, 5, 0)
    assert np.bincount(labels[test], minlength=6).tolist() == [5, 4, 2, 1, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, test])), np.arange(len(labels)))
    assert set(test.tolist()) != set(split_test_images(labels, 0.1, 5, 1)[1].tolist())


def test_images_of_the_lowest_hash_in_a_class_are_tested():
    labels = np.repeat([0, 1], [30, 12])
    hashes = hash_words(RngStream.TEST, 7, np.arange(42))
    expected = [*np.argsort(hashes[:30])[:3], 30 + np.argmin(hashes[30:])]
    assert split_test_images(labels, 0.1, 5, 7)[1].tolist() == sorted(map(int, expected))


def test_without_a_fraction_nothing_is_tested():
    rest, test = split_test_images(np.arange(9) // 3, 0.0, 5, 0)
    assert (len(rest), len(test)) == (9, 0)


@pytest.mark.parametrize(("fraction", "most"), [(1.0, 5), (-0.1, 5), (0.1, 0)])
def test_wrong_test_splits(fraction, most):
    with pytest.raises(ValueError, match="the test fraction must be in"):
        split_test_images(np.arange(3), fraction, most, 0)
