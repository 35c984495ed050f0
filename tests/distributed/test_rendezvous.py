"""Processes that torchrun starts again meet their like, whatever their predecessors left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from facelt.distributed import launch

TIMEOUT = timedelta(seconds=20)


@pytest.fixture
def notes() -> dist.Store:
    """The store torchrun keeps."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)


def meet(notes: dist.Store, processes: int, order: list[int]) -> list[str]:
    """Every rank's corner, the ranks arriving in this order."""
    found: dict[int, str] = {}

    def arrive(place: int) -> None:
        own = dist.TCPStore("127.0.0.1", notes.port, wait_for_workers=False, timeout=TIMEOUT)
        found[place] = launch._join(own, place, TIMEOUT) if place else launch._open(own, processes, TIMEOUT)

    threads = [threading.Thread(target=arrive, args=(place,)) for place in order]
    for thread in threads:
        thread.start()
        thread.join(0.2)
    for thread in threads:
        thread.join(TIMEOUT.total_seconds())
    return [found[place] for place in range(processes)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_each_start_meets_in_a_corner_of_its_own(notes, order):
    corners = [meet(notes, 3, order) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in corners)
    assert len({names[0] for names in corners}) == 3


def test_a_start_that_never_was_complete_is_passed_over(notes):
    """Rank 1 died before it joined: its successor finds an open corner in which nobody waits."""
    notes.set(launch.ROUND, "facelt/old")
    notes.add("facelt/old/2", 1)
    names = meet(notes, 3, [1, 2, 0])
    assert set(names) == {names[0]} != {"facelt/old"}


def test_one_process_meets_itself(notes):
    assert launch._open(notes, 1, TIMEOUT).startswith("facelt/")


def test_without_rank_0_it_ends(notes):
    notes.set(launch.ROUND, "facelt/old")
    with pytest.raises(dist.DistStoreError, match="rank 0 opened no meeting place"):
        launch._join(notes, 1, timedelta(seconds=0.2))
