"""Loader: batches independent of workers, shards of ranks, and the rest of an interrupted epoch."""

import multiprocessing
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from facelt.data.batch import SampleRequest, SampleRequests
from facelt.data.loader import Loader
from facelt.data.records import RecordDataset
from facelt.data.samplers import ClassAwareSampler, InstanceSampler, SequentialSampler
from facelt.data.transforms import RandomCropJitter

BAD = {"train.rec:4", "train.rec:20"}


def as_lists(batches) -> list[tuple]:
    return [
        (b.index_B.tolist(), b.label_B.tolist(), b.seed_B.tolist(), b.image_BHW3.tolist(), b.bad_images)
        for b in batches
    ]


@pytest.fixture
def dataset(face_rec) -> RecordDataset:
    return RecordDataset(face_rec, transform=RandomCropJitter(8))


@pytest.fixture
def sampler(dataset) -> ClassAwareSampler:
    return ClassAwareSampler(dataset.labels, 6, seed=1)


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_batches_do_not_depend_on_workers(dataset, sampler, workers, start_method):
    alone = Loader(dataset, sampler)
    many = Loader(dataset, sampler, workers=workers, start_method=start_method)
    for epoch in (0, 1):
        assert as_lists(many.batches(epoch)) == as_lists(alone.batches(epoch))
    many.close()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_stays_as_it_is_while_others_are_decoded(dataset, sampler, workers):
    loader = Loader(dataset, sampler, workers=workers)
    kept = [batch for epoch in range(4) for batch in loader.batches(epoch)]
    loader.close()
    for batch in kept:
        for index, seed, image in zip(batch.index_B, batch.seed_B, batch.image_BHW3, strict=True):
            assert np.array_equal(image, dataset[SampleRequest(int(index), int(seed))].image_HW3)


def test_the_rows_left_over_by_bad_images_are_not_touched(dataset):
    room_BHW3 = np.full((3, 8, 8, 3), 7, np.uint8)
    filled = dataset.fill_batch(SampleRequests(np.array([2, 3, 5]), np.array([11, 12, 13])), room_BHW3)
    assert filled.index_B.tolist() == [2, 5]
    assert filled.seed_B.tolist() == [11, 13]
    assert filled.label_B.tolist() == dataset.labels[[2, 5]].tolist()
    assert [item.name for item in filled.bad_images] == ["train.rec:4"]
    assert np.array_equal(room_BHW3[1], dataset[SampleRequest(5, 13)].image_HW3)
    assert (room_BHW3[2] == 7).all()


def test_a_failing_worker_is_reported(dataset, sampler):
    dataset.labels = dataset.labels[:1]
    loader = Loader(dataset, sampler, workers=1)
    with pytest.raises(IndexError, match="out of bounds"):
        list(loader.batches(0))
    loader.close()


def test_an_epoch_is_what_the_sampler_lists(face_rec):
    dataset = RecordDataset(face_rec)
    sampler = InstanceSampler(dataset.labels, 8, seed=0)
    loader = Loader(dataset, sampler)
    batches = list(loader.batches(5))
    assert len(batches) == loader.steps_per_epoch == 3
    index_T, seed_T = sampler.epoch_requests(5)
    bad = [3, 19]
    assert [i for b in batches for i in b.index_B.tolist()] == [i for i in index_T.tolist() if i not in bad]
    kept = [s for i, s in zip(index_T.tolist(), seed_T.tolist(), strict=True) if i not in bad]
    assert [s for b in batches for s in b.seed_B.tolist()] == kept
    assert {item.name for b in batches for item in b.bad_images} == BAD
    assert all(torch.equal(b.label_B, torch.from_numpy(dataset.labels)[b.index_B]) for b in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_step_gives_what_is_left(dataset, sampler, workers):
    loader = Loader(dataset, sampler, workers=workers)
    whole = as_lists(loader.batches(3))
    left_early = loader.batches(2)
    next(left_early)
    for step in (0, 2, 4):
        assert as_lists(loader.batches(3, step)) == whole[step:]
    loader.close()


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_each_global_batch(face_rec, world):
    dataset = RecordDataset(face_rec)
    sampler = SequentialSampler(len(dataset), 7)
    whole = as_lists(Loader(dataset, sampler).batches(0))
    ranks = [as_lists(Loader(dataset, sampler, rank=rank, world=world).batches(0)) for rank in range(world)]
    assert [len(batches) for batches in ranks] == [4] * world
    for step, (index, label, seed, image, bad) in enumerate(whole):
        shards = [batches[step] for batches in ranks]
        joined = [[value for shard in shards for value in shard[column]] for column in range(5)]
        assert joined == [index, label, seed, image, list(bad)]


def test_the_last_partial_batch_is_kept_in_evaluation(face_rec):
    dataset = RecordDataset(face_rec)
    sizes = [len(batch) + len(batch.bad_images) for batch in Loader(dataset, SequentialSampler(24, 10)).batches(0)]
    assert sizes == [10, 10, 4]


def test_the_global_generator_is_left_alone(dataset, sampler):
    before = torch.get_rng_state()
    list(Loader(dataset, sampler).batches(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_the_package_alone_loads_no_torch():
    code = "import sys, facelt.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_batches_to_their_reader(dataset, sampler, number):
    expected = as_lists(Loader(dataset, sampler).batches(0))
    others = multiprocessing.active_children()
    loader = Loader(dataset, sampler, workers=1)
    batches = loader.batches(0)
    first = next(batches)
    (worker,) = (child for child in multiprocessing.active_children() if child not in others)
    subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    assert as_lists([first, *batches]) == expected
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
