"""Rendezvous of the workers of one torchrun launch, and worker groups without a process group."""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from facelt.errors import UserError

# Store keys: the prefix published last, and below a prefix the mark that all workers have joined it.
PREFIX_KEY = "facelt/prefix"
JOINED_KEY = "all_joined"
POLL_SECONDS = 0.05
# Before the others start, the leader only writes a few small files.
START_TIMEOUT = timedelta(minutes=10)
# Shards have equal length, but machines differ in speed.
FINISH_TIMEOUT = timedelta(days=7)


def rendezvous_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Returns torchrun's store under a key prefix of this launch, this worker's rank, and the world size.

    The store outlives worker restarts, and restarted workers must not read keys of their predecessors. Every machine
    counts its restarts separately, so the restart count cannot serve as the prefix: rank 0 publishes a random one and
    the other ranks join it. Raises RuntimeError after `timeout`.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    prefix = _publish_prefix(store, world, timeout) if rank == 0 else _join_prefix(store, rank, timeout)
    return dist.PrefixStore(prefix, store), rank, world


def _publish_prefix(store: dist.Store, world: int, timeout: timedelta) -> str:
    """Returns a new key prefix, once all other ranks have joined it."""
    prefix = f"facelt/{uuid.uuid4().hex}"
    store.set(PREFIX_KEY, prefix)
    if world > 1:
        store.wait([f"{prefix}/{rank}" for rank in range(1, world)], timeout)
    store.set(f"{prefix}/{JOINED_KEY}", "")
    return prefix


def _join_prefix(store: dist.Store, rank: int, timeout: timedelta) -> str:
    """Joins the key prefix published by rank 0; skips those of earlier launches (joined before or never complete)."""
    deadline = time.monotonic() + timeout.total_seconds()
    last_prefix = joined = ""
    while time.monotonic() < deadline:
        prefix = store.get(PREFIX_KEY).decode()
        if prefix != last_prefix:
            last_prefix, joined = prefix, prefix if store.add(f"{prefix}/{rank}", 1) == 1 else ""
        if joined and store.check([f"{joined}/{JOINED_KEY}"]):
            return joined
        time.sleep(POLL_SECONDS)
    raise dist.DistStoreError(f"rank 0 published no key prefix within {timeout}")


@dataclass(frozen=True)
class WorkerGroup:
    """Rank and world size of independent workers. No process group is created, so models are not sharded.

    Rank 0 is the leader: it starts before the others and finalizes after them.
    """

    rank: int = 0
    world: int = 1
    store: dist.Store | None = None

    @classmethod
    def from_env(cls) -> "WorkerGroup":
        """Returns the workers that torchrun started, or a group of one."""
        if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
            return cls()
        store, rank, world = rendezvous_store(START_TIMEOUT)
        return cls(rank, world, store)

    def shard_range(self, items: int, batch: int) -> range | None:
        """Returns this worker's shard of `items` in whole batches; None in a group of one."""
        if self.world == 1:
            return None
        steps = -(-items // batch)
        first, stop = (steps * rank // self.world * batch for rank in (self.rank, self.rank + 1))
        return range(min(first, items), min(stop, items))

    def wait_for_leader(self) -> None:
        """Blocks all ranks but the leader until `signal_ready`."""
        if self.rank:
            self._wait("ready", START_TIMEOUT)

    def signal_ready(self) -> None:
        """Releases the ranks in `wait_for_leader`; does nothing on other ranks than the leader."""
        if self.store and not self.rank:
            self.store.set("ready", "")

    def finalize_on_leader(self, action: Callable[[], object]) -> None:
        """Runs `action` on the leader after all ranks have called this; the other ranks return at once."""
        if self.store and self.rank:
            self.store.set(f"done/{self.rank}", "")
            return
        for rank in range(1, self.world):
            self._wait(f"done/{rank}", FINISH_TIMEOUT)
        action()

    def _wait(self, key: str, timeout: timedelta) -> None:
        try:
            self.store.wait([key], timeout)
        except dist.DistError as error:
            raise UserError(f"rank {self.rank}: timed out waiting for another process ({error})") from None
