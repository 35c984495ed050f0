"""Worker-side transforms: shapes and determinism."""

import numpy as np
import pytest
import torch

from facelt.data.decode import BadImageError
from facelt.data.transforms import CenterCrop, ExpectSize, RandomCropJitter, Resize

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "transform", [RandomCropJitter(24), RandomCropJitter(24, jitter=(0, 0, 0, 0)), CenterCrop(24, 32)]
)
def test_equal_seeds_give_equal_images_and_leave_the_global_generator_alone(transform):
    before = torch.get_rng_state()
    first, again = transform(IMAGE, 7), transform(IMAGE, 7)
    assert first.shape == (*transform.image_size, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_change_the_training_image_and_not_the_test_image():
    train = {RandomCropJitter(24)(IMAGE, seed).tobytes() for seed in range(8)}
    test = {CenterCrop(24, 32)(IMAGE, seed).tobytes() for seed in range(8)}
    assert (len(train), len(test)) == (8, 1)


def test_training_flips_half_of_the_images():
    whole = RandomCropJitter(40, jitter=(0, 0, 0, 0), scale=(1.0, 1.0))
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None] * 6, 40, 0).repeat(3, 2)
    flipped = [whole(ramp, seed)[20, 0, 0] > whole(ramp, seed)[20, -1, 0] for seed in range(200)]
    assert 70 <= sum(flipped) <= 130


def test_jitter_is_absent_when_all_of_it_is_zero():
    grey = np.full((40, 40, 3), 100, np.uint8)
    assert np.unique(RandomCropJitter(24, jitter=(0, 0, 0, 0))(grey, 3)).tolist() == [100]
    assert {int(RandomCropJitter(24)(grey, seed)[0, 0, 0]) for seed in range(5)} != {100}


def test_centre_crop_takes_the_middle():
    image = np.zeros((32, 64, 3), np.uint8)
    image[4:28, 20:44] = 255
    assert CenterCrop(24, 32)(image, 0).min() == 255


def test_expected_size_passes_untouched_and_refuses_others():
    assert ExpectSize((40, 60))(IMAGE, 0) is IMAGE
    with pytest.raises(BadImageError, match=r"40 x 60 pixels .* 60 x 40"):
        ExpectSize((60, 40))(IMAGE, 0)


def test_resizing_keeps_the_whole_image_and_those_of_the_size_untouched():
    halves = np.zeros((64, 20, 3), np.uint8)
    halves[:32] = 200
    small = Resize((32, 40))(halves, 0)
    assert (small.shape, small.dtype) == ((32, 40, 3), np.uint8)
    assert (small[:15] == 200).all()
    assert (small[17:] == 0).all()
    np.testing.assert_array_equal(Resize((40, 60))(IMAGE, 0), IMAGE)
