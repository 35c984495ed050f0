"""Class activation maps and foreground masks against a plain computation, image by image."""

import cv2
import numpy as np
import pytest
import torch

from facelt.models.layers import class_activation_map, foreground_mask


@pytest.fixture
def maps():
    random = np.random.default_rng(0)
    return random.normal(size=(5, 7, 4, 3)).astype(np.float32), random.normal(size=(5, 7)).astype(np.float32)


def test_the_activation_is_the_map_weighted_by_the_class(maps):
    map_BChw, weight_BC = maps
    result = class_activation_map(torch.from_numpy(map_BChw), torch.from_numpy(weight_BC)).numpy()
    for image in range(5):
        plain = sum(weight_BC[image, channel] * map_BChw[image, channel] for channel in range(7))
        np.testing.assert_allclose(result[image], plain, rtol=1e-5, atol=1e-6)
        logit = map_BChw[image].mean(axis=(1, 2)) @ weight_BC[image]
        assert result[image].mean() == pytest.approx(logit, rel=1e-4, abs=1e-5)


def test_foreground_equals_that_of_opencvs_resized_activation(maps):
    activation_Bhw = maps[0][:, 0]
    result = foreground_mask(torch.from_numpy(activation_Bhw), (17, 20)).numpy()
    for image, seen_HW in zip(activation_Bhw, result, strict=True):
        large = cv2.resize(image - image.min(), (20, 17), interpolation=cv2.INTER_LINEAR)
        assert (seen_HW == (large >= 0.75 * large.mean())).all()
        assert 0 < seen_HW.sum() < seen_HW.size


def test_a_flat_activation_is_all_foreground():
    assert foreground_mask(torch.full((2, 3, 3), -4.0), (6, 6)).all()
