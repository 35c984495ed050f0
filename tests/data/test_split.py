"""The training/validation split: every image once, no class lost, the requested fraction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.data.samplers import train_validation_split


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
