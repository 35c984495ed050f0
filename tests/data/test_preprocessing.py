"""Normalisation and flips against plain NumPy, and the compiled kernel against the plain expression."""

import shutil

import numpy as np
import pytest
import torch

from facelt.data import transforms
from facelt.data.samplers import hash_words
from facelt.data.transforms import flip_mask, normalise_images
from facelt.errors import UserError


def test_normalisation_is_the_plain_formula():
    image_BHW3 = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain = ((image_BHW3.numpy() / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    result = normalise_images(image_BHW3, mean, std)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), plain, atol=1e-6)
    plain[[0, 2]] = plain[[0, 2]][..., ::-1]
    result = normalise_images(image_BHW3, mean, std, torch.tensor([5, 2**62, 2**62 + 1]))
    np.testing.assert_allclose(result.numpy(), plain, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_of_face_models_and_of_an_empty_batch():
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert normalise_images(ends, [0.5] * 3, [0.5] * 3).flatten().tolist() == [-1.0, 1.0] * 3
    assert normalise_images(torch.empty((0, 4, 5, 3), dtype=torch.uint8), [0.5] * 3, [0.5] * 3).shape == (0, 3, 4, 5)


def test_flips_are_half_and_follow_the_seed_alone():
    seed_B = torch.from_numpy((hash_words(4, 0, 0, np.arange(4000)) >> np.uint64(1)).astype(np.int64))
    flip_B = flip_mask(seed_B)
    assert flip_B.dtype == torch.bool
    assert 1850 <= int(flip_B.sum()) <= 2150
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flip_mask(seed_B[order]), flip_B[order])


@pytest.mark.skipif(shutil.which("g++") is None, reason="on the CPU torch compiles with g++")
def test_the_compiled_kernel_is_one_and_gives_the_same_for_any_batch():
    from torch._inductor import metrics

    random = np.random.default_rng(2)
    image_BHW3 = torch.from_numpy(random.integers(0, 256, (9, 12, 10, 3), dtype=np.uint8))
    seed_B = torch.from_numpy(random.integers(0, 2**62, 9))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    metrics.reset()
    for size in (9, 4, 7, 1, 0):
        # Clones, since batches on a device are no views.
        part = (image_BHW3[:size].clone(), mean, std, seed_B[:size].clone())
        fused, plain = normalise_images(*part, fused=True), normalise_images(*part)
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-6)
        assert fused.stride() == plain.stride()
    assert metrics.generated_kernel_count == 1


def test_a_kernel_that_cannot_be_compiled_is_a_mistake_of_one_line(monkeypatch):
    def broken(*_):
        raise torch._inductor.exc.TritonMissing(None)

    monkeypatch.setattr(transforms, "_compiled", lambda: broken)
    with pytest.raises(
        UserError, match=r"^data\.fused: the kernel for cpu cannot be compiled .*data\.fused=false"
    ) as caught:
        normalise_images(torch.zeros((2, 4, 4, 3), dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3, fused=True)
    assert "\n" not in str(caught.value)
