"""Rendezvous of restarted torchrun workers: keys left by earlier launches are never read."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from facelt.distributed import rendezvous

TIMEOUT = timedelta(seconds=20)


@pytest.fixture
def store() -> dist.Store:
    """A store as torchrun keeps it."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)


def meet(store: dist.Store, world: int, order: list[int]) -> list[str]:
    """Each rank's key prefix; the ranks arrive in this order."""
    prefixes: dict[int, str] = {}

    def arrive(rank: int) -> None:
        client = dist.TCPStore("127.0.0.1", store.port, wait_for_workers=False, timeout=TIMEOUT)
        if rank:
            prefixes[rank] = rendezvous._join_prefix(client, rank, TIMEOUT)
        else:
            prefixes[rank] = rendezvous._publish_prefix(client, world, TIMEOUT)

    threads = [threading.Thread(target=arrive, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        thread.join(0.2)
    for thread in threads:
        thread.join(TIMEOUT.total_seconds())
    return [prefixes[rank] for rank in range(world)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_each_launch_gets_a_new_prefix(store, order):
    launches = [meet(store, 3, order) for _ in range(3)]
    assert all(len(set(prefixes)) == 1 for prefixes in launches)
    assert len({prefixes[0] for prefixes in launches}) == 3


def test_an_incomplete_launch_is_skipped(store):
    """Rank 1 died before it joined: its successor finds a prefix that was never completed."""
    store.set(rendezvous.PREFIX_KEY, "facelt/old")
    store.add("facelt/old/2", 1)
    prefixes = meet(store, 3, [1, 2, 0])
    assert set(prefixes) == {prefixes[0]} != {"facelt/old"}


def test_one_process_needs_no_peer(store):
    assert rendezvous._publish_prefix(store, 1, TIMEOUT).startswith("facelt/")


def test_timeout_without_rank_0(store):
    store.set(rendezvous.PREFIX_KEY, "facelt/old")
    with pytest.raises(dist.DistStoreError, match="rank 0 published no key prefix"):
        rendezvous._join_prefix(store, 1, timedelta(seconds=0.2))
