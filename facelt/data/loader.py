"""Batch loader with worker processes, shared memory, and a shard of every global batch for each rank.

S slots of shared memory, B images of a batch, H height, W width, T requests of an epoch.
"""

import math
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from facelt.data.batch import Batch, FilledBatch, SampleRequests
from facelt.data.dataset import ImageDataset
from facelt.data.decode import prepare_opencv
from facelt.data.samplers import Sampler
from facelt.errors import UserError

_MAX_HELD = 2
"""Batches the consumer may hold: the current one, and the previous one until the next has arrived."""

_PREFETCH = 2
"""Batches each worker decodes ahead."""


class SharedBatchPool:
    """Reusable shared-memory buffers for one batch each, uint8 [S,B,H,W,3], with S = `tasks` + _MAX_HELD.

    Allocating shared memory for every batch costs page faults in both processes and a file descriptor per tensor: a
    third of the time to decode a face. A task `acquire`s a slot. Once a worker has filled it, `get` lends it as a
    tensor; the slot is free again when the last reference to that tensor's memory is gone. So `tasks` slots can always
    be acquired.

    Raises UserError if there is too little shared memory.
    """

    def __init__(self, tasks: int, batch: int, image_size: tuple[int, int]) -> None:
        shape = (tasks + _MAX_HELD, batch, *image_size, 3)
        try:
            self.image_SBHW3 = torch.empty(shape, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"workers: cannot allocate {math.prod(shape) / 1e6:.0f} MB of shared memory for {shape[0]} x "
                f"{batch} images ({' '.join(str(error).split())}); use fewer workers or smaller batches, or enlarge "
                "/dev/shm"
            ) from None
        self._view_SBHW3 = self.image_SBHW3.numpy()
        self._free: deque[int] = deque(range(shape[0]))
        self._acquired: set[int] = set()

    def acquire(self) -> int:
        """Returns a free slot for a task."""
        slot = self._free.popleft()
        self._acquired.add(slot)
        return slot

    def get(self, slot: int) -> torch.Tensor:
        """Returns the images [B,H,W,3] of a finished task; the caller may keep them.

        They are the slot itself, or a copy if the caller still holds _MAX_HELD earlier ones.
        """
        self._acquired.remove(slot)
        if len(self._view_SBHW3) - len(self._free) - len(self._acquired) > _MAX_HELD:
            self._free.append(slot)
            return self.image_SBHW3[slot].clone()
        # torch keeps this array alive as long as any tensor views its memory.
        lent_BHW3 = self._view_SBHW3[slot]
        weakref.finalize(lent_BHW3, self._free.append, slot)
        return torch.from_numpy(lent_BHW3)

    def reset(self) -> None:
        """Frees the slots of abandoned tasks; no worker may still be filling one."""
        self._free.extend(self._acquired)
        self._acquired.clear()


class ShardedSampler:
    """One rank's contiguous shard of each global batch of a sampler.

    A last batch may have fewer images than there are ranks: then some shards are empty, and all ranks make equally many
    steps.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    @property
    def max_shard(self) -> int:
        """Images of the largest shard of a batch."""
        return -(-self.sampler.batch // self.world)

    def steps(self, epoch: int, start_step: int) -> Iterator[SampleRequests]:
        """Yields this rank's requests of each step of an epoch, from `start_step` on."""
        index_T, seed_T = self.sampler.epoch_requests(epoch)
        for step in range(start_step, self.sampler.steps_per_epoch):
            first = step * self.sampler.batch
            size = min(self.sampler.batch, len(index_T) - first)
            shard = slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)
            yield SampleRequests(index_T[shard], seed_T[shard])


class Loader:
    """Batches of a dataset in a sampler's order; worker processes live from the first epoch to `close()`.

    Rank r of `world` gets its shard of each global batch (ShardedSampler). Batches depend neither on `workers` nor on
    `start_method` (fork, spawn, forkserver, or None for Python's default), and the global random generators stay
    untouched. With `pin` batches lie in page-locked memory.

    Raises UserError if there is too little shared memory for the workers.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: Sampler,
        *,
        workers: int = 0,
        pin: bool = False,
        rank: int = 0,
        world: int = 1,
        start_method: str | None = None,
    ) -> None:
        prepare_opencv()
        self._dataset, self._pin = dataset, pin
        self._shards = ShardedSampler(sampler, rank, world)
        self._loader: DataLoader | None = None
        if workers > 0:
            # The DataLoader issues one more task before it returns a finished one.
            tasks = min(_PREFETCH * workers + 1, sampler.steps_per_epoch)
            self._pool = SharedBatchPool(tasks, self._shards.max_shard, dataset.image_size)
            self._tasks = _Tasks(self._shards, self._pool)
            self._loader = DataLoader(
                _SlotDataset(dataset, self._pool.image_SBHW3),
                sampler=self._tasks,
                batch_size=None,
                collate_fn=_identity,
                num_workers=workers,
                prefetch_factor=_PREFETCH,
                persistent_workers=True,
                worker_init_fn=_prepare_worker,
                multiprocessing_context=start_method,
                generator=torch.Generator().manual_seed(0),
            )

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a whole epoch."""
        return self._shards.sampler.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch from `start_step` on; only one epoch can be read at a time."""
        if self._loader is None:
            return map(self._read, self._shards.steps(epoch, start_step))
        self._tasks.epoch, self._tasks.start_step = epoch, start_step
        return map(self._receive, iter(self._loader))

    def close(self) -> None:
        """Ends the workers."""
        self._loader = None

    def _read(self, requests: SampleRequests) -> Batch:
        image_BHW3 = torch.empty((len(requests.index_B), *self._dataset.image_size, 3), dtype=torch.uint8)
        batch = self._dataset.fill_batch(requests, image_BHW3.numpy()).batch(image_BHW3)
        return batch.pin_memory() if self._pin else batch

    def _receive(self, result: tuple[int, FilledBatch]) -> Batch:
        slot, filled = result
        batch = filled.batch(self._pool.get(slot))
        return batch.pin_memory() if self._pin else batch


class _Tasks:
    """Sampler of the DataLoader: a slot and the requests of each remaining step of the current epoch."""

    def __init__(self, shards: ShardedSampler, pool: SharedBatchPool) -> None:
        self.shards, self.pool = shards, pool
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        return max(self.shards.sampler.steps_per_epoch - self.start_step, 0)

    def __iter__(self) -> Iterator[tuple[int, SampleRequests]]:
        # The DataLoader asks for the first task only after its workers have dropped the tasks of the last epoch.
        self.pool.reset()
        for requests in self.shards.steps(self.epoch, self.start_step):
            yield self.pool.acquire(), requests


class _SlotDataset(Dataset):
    """Dataset of the DataLoader's workers: decodes a batch into its slot and sends everything but the pixels."""

    def __init__(self, dataset: ImageDataset, image_SBHW3: torch.Tensor) -> None:
        self.dataset, self.image_SBHW3 = dataset, image_SBHW3

    def __getitem__(self, task: tuple[int, SampleRequests]) -> tuple[int, FilledBatch]:
        slot, requests = task
        return slot, self.dataset.fill_batch(requests, self.image_SBHW3[slot].numpy())


def _identity(item: Any) -> Any:
    return item


def _prepare_worker(_: int) -> None:
    # Signals to stop are often sent to the whole process group. The parent decides when to stop, and may need the
    # current batch before it does; workers end only when the parent terminates them or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parent_signal, daemon=True).start()
    prepare_opencv()


def _exit_on_parent_signal() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
