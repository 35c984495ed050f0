"""Where the processes of one start of torchrun meet: a corner of its store that earlier starts never touched."""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

ROUND = "facelt/round"
COMPLETE = "complete"
PAUSE_S = 0.05


def meeting_place(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """torchrun's store of notes, this process's rank, and how many there are.

    The store outlives the processes that torchrun starts again, on one machine or on several, and they must not read
    what their predecessors left. torchrun numbers the starts of each machine by itself, so the number of a start cannot
    name the corner: rank 0 draws a name, and everyone else joins it. Raises RuntimeError after `timeout`.
    """
    notes, place, processes = next(rendezvous("env://", timeout=timeout))
    name = _open(notes, processes, timeout) if place == 0 else _join(notes, place, timeout)
    return dist.PrefixStore(name, notes), place, processes


def _open(notes: dist.Store, processes: int, timeout: timedelta) -> str:
    """A new corner, once all have joined it."""
    name = f"facelt/{uuid.uuid4().hex}"
    notes.set(ROUND, name)
    if processes > 1:
        notes.wait([f"{name}/{place}" for place in range(1, processes)], timeout)
    notes.set(f"{name}/{COMPLETE}", "")
    return name


def _join(notes: dist.Store, place: int, timeout: timedelta) -> str:
    """The corner rank 0 opened; one that this rank's predecessor joined, or nobody completes, is an old one."""
    end = time.monotonic() + timeout.total_seconds()
    seen = joined = ""
    while time.monotonic() < end:
        name = notes.get(ROUND).decode()
        if name != seen:
            seen, joined = name, name if notes.add(f"{name}/{place}", 1) == 1 else ""
        if joined and notes.check([f"{joined}/{COMPLETE}"]):
            return joined
        time.sleep(PAUSE_S)
    raise dist.DistStoreError(f"rank 0 opened no meeting place within {timeout}")
