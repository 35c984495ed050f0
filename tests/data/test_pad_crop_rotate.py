"""PadCropRotate against torchvision's crop and rotation, image by image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from facelt.data.samplers import hash_words
from facelt.data.transforms import PadCropRotate, flip_mask


def seeds(count: int, salt: int = 0) -> torch.Tensor:
    """Returns seeds as a sampler makes them."""
    return torch.from_numpy((hash_words(4, salt, 0, np.arange(count)) >> np.uint64(1)).astype(np.int64))


def noise(count: int, height: int = 12, width: int = 10) -> torch.Tensor:
    """Returns random images; no two crops of one are equal."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8))


def crops(image_HW3: torch.Tensor, pad: int) -> dict[tuple[int, int], torch.Tensor]:
    """Returns every possible crop of RandomCrop(size, padding=pad) by its corner."""
    size = image_HW3.shape[:2]
    padded = functional.pad(image_HW3.permute(2, 0, 1), [pad] * 4)
    corners = [(y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return {corner: functional.crop(padded, *corner, *size).permute(1, 2, 0) for corner in corners}


@pytest.mark.parametrize("pad", [1, 2, 4])
def test_every_result_is_one_of_the_padded_crops_and_all_are_as_frequent(pad):
    image_HW3, seed_B = noise(1)[0], seeds(4000)
    result_BHW3 = PadCropRotate(pad)(image_HW3.expand(4000, *image_HW3.shape), seed_B)
    counts = {result.numpy().tobytes(): 0 for result in result_BHW3}
    for result in result_BHW3:
        counts[result.numpy().tobytes()] += 1
    possible = {crop.contiguous().numpy().tobytes() for crop in crops(image_HW3, pad).values()}
    assert set(counts) == possible
    expected = 4000 / len(possible)
    # Five standard deviations of a count.
    assert max(abs(count - expected) for count in counts.values()) < 5 * math.sqrt(expected)


def test_the_crop_is_independent_of_the_flip():
    image_HW3, seed_B = noise(1)[0], seeds(4000, salt=1)
    result_BHW3 = PadCropRotate(1)(image_HW3.expand(4000, *image_HW3.shape), seed_B)
    by_bytes = {crop.contiguous().numpy().tobytes(): corner for corner, crop in crops(image_HW3, 1).items()}
    corner_B2 = np.array([by_bytes[result.numpy().tobytes()] for result in result_BHW3])
    together = np.corrcoef(np.column_stack([corner_B2, flip_mask(seed_B).numpy()]), rowvar=False)
    assert np.abs(together - np.eye(3)).max() < 5 / math.sqrt(4000)


def test_rotations_are_torchvisions_to_the_nearest_pixel():
    image_BHW3, seed_B = noise(64, 32, 32), seeds(64)
    result_BHW3 = PadCropRotate(rotation=15)(image_BHW3, seed_B)
    degrees = [15 * (2 * (seed // 2**33 % 2**24) / 2**24 - 1) for seed in seed_B.tolist()]
    assert min(degrees) < -13
    assert max(degrees) > 13
    for image_HW3, result_HW3, angle in zip(image_BHW3, result_BHW3, degrees, strict=True):
        expected_3HW = functional.rotate(image_HW3.permute(2, 0, 1), angle, v2.InterpolationMode.NEAREST)
        # A position halfway between two pixels may go to either.
        assert (expected_3HW.permute(1, 2, 0) != result_HW3).any(2).float().mean() < 0.003


def test_the_crop_is_rotated_after_cropping():
    """Padding is rotated with the crop, and pixels outside the crop do not come back."""
    image_BHW3, seed_B = noise(16, 32, 32), seeds(16)
    both_BHW3 = PadCropRotate(4, 15)(image_BHW3, seed_B)
    one_by_one_BHW3 = PadCropRotate(rotation=15)(PadCropRotate(4)(image_BHW3, seed_B), seed_B)
    assert torch.equal(both_BHW3, one_by_one_BHW3)


def test_without_pad_and_rotation_nothing_changes():
    image_BHW3 = noise(5)
    assert torch.equal(PadCropRotate()(image_BHW3, seeds(5)), image_BHW3)


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(9)),
    cut=st.integers(0, 9),
    pad=st.integers(0, 5),
    rotation=st.floats(0, 180),
)
def test_an_image_is_changed_equally_in_any_batch(order, cut, pad, rotation):
    image_BHW3, seed_B, change = noise(9, 8, 7), seeds(9), PadCropRotate(pad, rotation)
    whole_BHW3 = change(image_BHW3, seed_B)
    assert whole_BHW3.dtype == torch.uint8
    parts = [change(image_BHW3[part], seed_B[part]) for part in (order[:cut], order[cut:])]
    assert torch.equal(torch.cat(parts), whole_BHW3[order])
