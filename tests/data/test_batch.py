"""Batches: images kept, bad images named, and the empty batch."""

import numpy as np
import pytest
import torch

from facelt.data.batch import BadImage, BadImageTracker, FilledBatch
from facelt.errors import UserError


def filled(count: int, *bad: BadImage) -> FilledBatch:
    index_B = np.arange(count)
    return FilledBatch(10 + index_B, index_B, 2**62 + index_B, bad)


def test_a_batch_is_the_first_rows_of_what_was_filled():
    room_BHW3 = torch.arange(3 * 2 * 3 * 3, dtype=torch.uint8).view(3, 2, 3, 3)
    bad = BadImage("a.rec:7", "damaged")
    batch = filled(2, bad).batch(room_BHW3)
    assert len(batch) == 2
    assert torch.equal(batch.image_BHW3, room_BHW3[:2])
    assert batch.label_B.tolist() == [10, 11]
    assert batch.index_B.tolist() == [0, 1]
    assert batch.seed_B.tolist() == [2**62, 2**62 + 1]
    assert batch.bad_images == (bad,)


@pytest.mark.parametrize("bad", [(), (BadImage("a", "b"),)])
def test_a_batch_without_an_image_keeps_its_shape(bad):
    batch = filled(0, *bad).batch(torch.empty((1, 2, 3, 3), dtype=torch.uint8))
    assert len(batch) == 0
    assert batch.image_BHW3.shape == (0, 2, 3, 3)
    assert batch.label_B.dtype == batch.index_B.dtype == batch.seed_B.dtype == torch.int64
    assert batch.bad_images == bad


def test_a_batch_moves_as_a_whole():
    batch = filled(1, BadImage("a", "b")).batch(torch.zeros((1, 2, 3, 3), dtype=torch.uint8))
    moved = batch.to("meta")
    assert {moved.image_BHW3.device.type, moved.label_B.device.type, moved.seed_B.device.type} == {"meta"}
    assert moved.bad_images == batch.bad_images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_memory():
    assert filled(1).batch(torch.zeros((1, 2, 3, 3), dtype=torch.uint8)).pin_memory().image_BHW3.is_pinned()


def test_bad_images_are_counted_once_and_bounded():
    count = BadImageTracker(limit=2)
    assert count.add([BadImage("a", "x"), BadImage("b", "y")]) == (BadImage("a", "x"), BadImage("b", "y"))
    assert count.add([BadImage("a", "x")]) == ()
    assert len(count) == 2
    with pytest.raises(UserError, match=r"3 images cannot be used, data.max_bad_images allows 2: a: x; b: y; c: z$"):
        count.add([BadImage("c", "z")])


def test_no_bad_image_is_allowed_by_zero_and_a_long_list_is_cut():
    with pytest.raises(UserError, match=r"; and 15 more$"):
        BadImageTracker(limit=0).add(BadImage(str(i), "bad") for i in range(20))
