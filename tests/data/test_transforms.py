"""Worker-side and device-side transforms: shapes, determinism, and plain numpy beside the fused expression."""

import numpy as np
import pytest
import torch

from facelt.data.decode import UndecodableImage
from facelt.data.hashing import hash64
from facelt.data.transforms import CentreCrop, ExpectSize, TrainCrop, flip_mask, to_float

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("transform", [TrainCrop(24), TrainCrop(24, jitter=(0, 0, 0, 0)), CentreCrop(24, 32)])
def test_equal_seeds_give_equal_images_and_leave_the_global_generator_alone(transform):
    before = torch.get_rng_state()
    first, again = transform(IMAGE, 7), transform(IMAGE, 7)
    assert first.shape == (*transform.image_size, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_change_the_training_image_and_not_the_test_image():
    train = {TrainCrop(24)(IMAGE, seed).tobytes() for seed in range(8)}
    test = {CentreCrop(24, 32)(IMAGE, seed).tobytes() for seed in range(8)}
    assert (len(train), len(test)) == (8, 1)


def test_training_flips_half_of_the_images():
    whole = TrainCrop(40, jitter=(0, 0, 0, 0), scale=(1.0, 1.0))
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None] * 6, 40, 0).repeat(3, 2)
    flipped = [whole(ramp, seed)[20, 0, 0] > whole(ramp, seed)[20, -1, 0] for seed in range(200)]
    assert 70 <= sum(flipped) <= 130


def test_jitter_is_absent_when_all_of_it_is_zero():
    grey = np.full((40, 40, 3), 100, np.uint8)
    assert np.unique(TrainCrop(24, jitter=(0, 0, 0, 0))(grey, 3)).tolist() == [100]
    assert {int(TrainCrop(24)(grey, seed)[0, 0, 0]) for seed in range(5)} != {100}


def test_centre_crop_takes_the_middle():
    image = np.zeros((32, 64, 3), np.uint8)
    image[4:28, 20:44] = 255
    assert CentreCrop(24, 32)(image, 0).min() == 255


def test_expected_size_passes_untouched_and_refuses_others():
    assert ExpectSize((40, 60))(IMAGE, 0) is IMAGE
    with pytest.raises(UndecodableImage, match=r"40 x 60 pixels .* 60 x 40"):
        ExpectSize((60, 40))(IMAGE, 0)


def test_to_float_is_the_plain_formula():
    image_BHW3 = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain = ((image_BHW3.numpy() / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    result = to_float(image_BHW3, mean, std)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), plain, atol=1e-6)
    flip_B = torch.tensor([True, False, True])
    plain[[0, 2]] = plain[[0, 2]][..., ::-1]
    np.testing.assert_allclose(to_float(image_BHW3, mean, std, flip_B).numpy(), plain, atol=1e-6)


def test_to_float_of_face_models_and_of_nothing():
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert to_float(ends, [0.5] * 3, [0.5] * 3).flatten().tolist() == [-1.0, 1.0] * 3
    assert to_float(torch.empty((0, 4, 5, 3), dtype=torch.uint8), [0.5] * 3, [0.5] * 3).shape == (0, 3, 4, 5)


def test_flips_are_half_and_follow_the_seed_alone():
    seed_B = torch.from_numpy((hash64(4, 0, 0, np.arange(4000)) >> np.uint64(1)).astype(np.int64))
    flip_B = flip_mask(seed_B)
    assert flip_B.dtype == torch.bool
    assert 1850 <= int(flip_B.sum()) <= 2150
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flip_mask(seed_B[order]), flip_B[order])
