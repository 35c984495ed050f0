"""Shared batch pool: lent batches stay unchanged, released slots come back, and the next task always has a slot."""

import gc

import pytest
import torch

from facelt.data.loader import SharedBatchPool
from facelt.errors import UserError


def fill(pool: SharedBatchPool, value: int) -> int:
    slot = pool.acquire()
    pool.image_SBHW3[slot] = value
    return slot


def test_what_is_lent_is_the_slot_until_any_view_of_it_is_gone():
    pool = SharedBatchPool(1, 1, (2, 2))
    slot = fill(pool, 5)
    row_HW3 = pool.get(slot)[0]  # a view is all that is left of the tensor
    gc.collect()
    assert row_HW3.data_ptr() == pool.image_SBHW3[slot].data_ptr()
    assert slot not in {pool.acquire(), pool.acquire()}
    with pytest.raises(IndexError):
        pool.acquire()
    del row_HW3
    assert pool.acquire() == slot


def test_more_than_two_held_batches_are_copies_and_tasks_continue():
    pool = SharedBatchPool(3, 1, (2, 2))
    held = [pool.get(fill(pool, value)) for value in range(20)]
    assert [int(image.unique()) for image in held] == list(range(20))
    assert sum(any(image.data_ptr() == slot.data_ptr() for slot in pool.image_SBHW3) for image in held) == 2
    assert len({pool.acquire() for _ in range(3)}) == 3


def test_reset_frees_the_slots_of_abandoned_tasks():
    pool = SharedBatchPool(2, 1, (2, 2))
    first = {pool.acquire() for _ in range(4)}
    pool.reset()
    assert first == {pool.acquire() for _ in range(4)} == {0, 1, 2, 3}


def test_too_little_shared_memory_is_a_mistake_of_one_line(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm):\n No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        UserError, match=r"^workers: cannot allocate 3 MB of shared memory for 10 x 100 images .*No space left"
    ):
        SharedBatchPool(8, 100, (32, 32))
