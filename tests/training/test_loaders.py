"""Training samplers: shot bands, independent draws, and progress over epochs."""

from types import SimpleNamespace

import numpy as np
import pytest

from facelt.data.kind import Split, TrainingData
from facelt.errors import UserError
from facelt.methods.base import SamplerSpec
from facelt.training.loaders import build_sampler

# Of the first class 101 images are trained on, of the third 19; the last one's image is for validation alone.
LABELS = np.repeat(np.arange(5), (120, 100, 20, 7, 1))
MEMBERS = np.concatenate([np.arange(101), np.arange(120, 239), np.arange(240, 247)])
BANDS = {"many": {0}, "medium": {1}, "few": {2, 3}}


@pytest.fixture
def data():
    split = Split(SimpleNamespace(labels=LABELS), MEMBERS)
    return TrainingData(split, split, {}, num_classes=5, preprocessing=None)


@pytest.mark.parametrize("shots", BANDS)
@pytest.mark.parametrize("sampler", ["instance", "class_aware", "oversample"])
def test_shots_select_the_images_of_their_classes(data, shots, sampler):
    built = build_sampler(SamplerSpec(sampler, shots=shots), data, batch=5, seed=0, epochs=20)
    drawn = {index for epoch in range(20) for index in built.epoch_indices(epoch).tolist()}
    assert drawn == {index for index in MEMBERS.tolist() if LABELS[index] in BANDS[shots]}


def test_shots_that_no_class_has_are_refused(data):
    few = np.flatnonzero(LABELS == 3)
    split = Split(data.train.dataset, few)
    with pytest.raises(UserError, match="no training class has medium shots"):
        build_sampler(
            SamplerSpec("instance", shots="medium"), TrainingData(split, split, {}, 5, None), batch=2, seed=0, epochs=1
        )


def test_draws_differ_in_images_and_augmentation(data):
    def draws(draw: int, seed: int = 3):
        sampler = build_sampler(SamplerSpec("instance", draw=draw), data, batch=8, seed=seed, epochs=1)
        index_T, seed_T = sampler.epoch_requests(0)
        return index_T.tolist(), seed_T.tolist()

    first, second, third = draws(0), draws(1), draws(2)
    assert first == draws(0)
    assert second == draws(1)
    for left, right in ((first, second), (second, third), (second, draws(1, seed=4))):
        assert left[0] != right[0]
        assert not set(left[1]) & set(right[1])


def test_the_stages_epochs_reach_the_sampler(data):
    sampler = build_sampler(SamplerSpec("progressive"), data, batch=8, seed=0, epochs=40)
    np.testing.assert_allclose(sampler.class_prior(0), np.array([101, 100, 19, 7]) / 227)
    np.testing.assert_allclose(sampler.class_prior(20), (np.array([101, 100, 19, 7]) / 227 + 0.25) / 2)
