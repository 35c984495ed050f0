"""Cached images: the same batches as a Loader, and too many images are refused before any work."""

import numpy as np
import pytest
import torch

from facelt.config.registry import SAMPLERS
from facelt.data import device_cache
from facelt.data.device_cache import CachedLoader, DeviceImageCache, free_memory
from facelt.data.loader import Loader
from facelt.data.records import RecordDataset
from facelt.data.samplers import ClassAwareSampler, SequentialSampler
from facelt.errors import UserError

CPU = torch.device("cpu")
MEMBERS = np.delete(np.arange(24), [1, 17])


def as_lists(batches) -> list[tuple]:
    return [
        (b.index_B.tolist(), b.label_B.tolist(), b.seed_B.tolist(), b.image_BHW3.tolist(), b.bad_images)
        for b in batches
    ]


@pytest.fixture
def dataset(face_rec) -> RecordDataset:
    return RecordDataset(face_rec)


@pytest.fixture
def images(dataset) -> DeviceImageCache:
    loader = Loader(dataset, SequentialSampler(len(dataset), 7, members=MEMBERS))
    return DeviceImageCache(dataset, MEMBERS, CPU, lambda: loader.batches(0))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("world", [1, 3])
def test_batches_are_those_of_a_loader(dataset, images, name, world):
    sampler = SAMPLERS[name](dataset.labels, 5, 1, members=MEMBERS)
    for rank in range(world):
        streamed = Loader(dataset, sampler, rank=rank, world=world)
        cached = CachedLoader(images, sampler, rank=rank, world=world)
        assert cached.steps_per_epoch == streamed.steps_per_epoch
        for epoch, start in ((0, 0), (3, 2)):
            assert as_lists(cached.batches(epoch, start)) == as_lists(streamed.batches(epoch, start))


def test_unusable_images_are_named_where_they_are_drawn(dataset, images):
    batches = list(CachedLoader(images, SequentialSampler(24, 1, members=MEMBERS)).batches(0))
    bad = {index: batch.bad_images for index, batch in zip(MEMBERS.tolist(), batches, strict=True) if batch.bad_images}
    assert {index: [item.name for item in items] for index, items in bad.items()} == {
        3: ["train.rec:4"],
        19: ["train.rec:20"],
    }
    assert "16 x 12" in bad[19][0].reason


def test_images_are_decoded_once(dataset, images, monkeypatch):
    loader = CachedLoader(images, ClassAwareSampler(dataset.labels, 6, seed=1, members=MEMBERS))
    before = as_lists(loader.batches(0))
    monkeypatch.setattr(RecordDataset, "read_encoded", None)
    assert as_lists(loader.batches(0)) == before
    loader.close()


@pytest.mark.parametrize(("ranks", "free"), [(1, 33_000), (2, 67_000)])
def test_more_than_half_of_the_free_memory_is_refused_before_anything_is_read(dataset, monkeypatch, ranks, free):
    # 22 images of 16 x 16 x 3 bytes are 16,896.
    monkeypatch.setattr(device_cache, "free_memory", lambda _: free)
    with pytest.raises(UserError, match=r"^data\.cache_on_device: 22 images of 16 x 16 .* 50% .*free on cpu") as caught:
        DeviceImageCache(dataset, MEMBERS, CPU, lambda: pytest.fail("read"), ranks)
    assert ("in each of 2 processes" in str(caught.value)) == (ranks == 2)
    monkeypatch.setattr(device_cache, "free_memory", lambda _: free + 2_000)
    DeviceImageCache(dataset, MEMBERS, CPU, lambda: pytest.fail("read"), ranks)


def test_free_memory_of_the_host_is_a_number_of_bytes():
    assert 2**24 < free_memory(CPU) < 2**50
