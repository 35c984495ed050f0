"""Batches: what is kept, what is named, and the empty one."""

import pickle

import numpy as np
import pytest
import torch

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import BadImage, Collate, Sample
from facelt.errors import UserError


def sample(index: int) -> Sample:
    return Sample(np.full((2, 3, 3), index, np.uint8), label=10 + index, index=index, seed=2**62 + index)


def test_collate_keeps_order_and_names_the_bad():
    bad = BadImage("a.rec:7", "damaged")
    batch = Collate((2, 3))([sample(0), bad, sample(2)])
    assert len(batch) == 2
    assert batch.image_BHW3.dtype == torch.uint8
    assert batch.image_BHW3.shape == (2, 2, 3, 3)
    assert batch.image_BHW3[:, 0, 0, 0].tolist() == [0, 2]
    assert batch.label_B.tolist() == [10, 12]
    assert batch.index_B.tolist() == [0, 2]
    assert batch.seed_B.tolist() == [2**62, 2**62 + 2]
    assert batch.bad == (bad,)


@pytest.mark.parametrize("items", [[], [BadImage("a", "b")]])
def test_a_batch_without_an_image_keeps_its_shape(items):
    batch = Collate((2, 3))(items)
    assert len(batch) == 0
    assert batch.image_BHW3.shape == (0, 2, 3, 3)
    assert batch.label_B.dtype == batch.index_B.dtype == batch.seed_B.dtype == torch.int64
    assert batch.bad == tuple(items)


def test_a_batch_moves_as_a_whole():
    batch = Collate((2, 3))([sample(1), BadImage("a", "b")])
    there = batch.to("meta")
    assert {there.image_BHW3.device.type, there.label_B.device.type, there.seed_B.device.type} == {"meta"}
    assert there.bad == batch.bad
    copy = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copy.image_BHW3, batch.image_BHW3)
    assert copy.bad == batch.bad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_memory():
    assert Collate((2, 3))([sample(1)]).pin_memory().image_BHW3.is_pinned()


def test_bad_images_are_counted_once_and_bounded():
    count = BadImageCount(limit=2)
    assert count.add([BadImage("a", "x"), BadImage("b", "y")]) == (BadImage("a", "x"), BadImage("b", "y"))
    assert count.add([BadImage("a", "x")]) == ()
    assert len(count) == 2
    with pytest.raises(UserError, match=r"3 images cannot be used, data.max_bad_images allows 2: a: x; b: y; c: z$"):
        count.add([BadImage("c", "z")])


def test_no_bad_image_is_allowed_by_zero_and_a_long_list_is_cut():
    with pytest.raises(UserError, match=r"; and 15 more$"):
        BadImageCount(limit=0).add(BadImage(str(i), "bad") for i in range(20))
