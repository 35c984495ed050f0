"""Memory that a process shares with its workers, lent out batch by batch and taken back by itself.

Shapes: S slots, B images of a batch, H height, W width.

One rank's part of what a sampler lists.

Shapes: T draws of an epoch.

Batches of an epoch, decoded by worker processes.

Shapes: S slots of shared memory, B images of a batch, H height, W width.
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

LENT = 2
"""What a loop needs: the batch it looks at, and the one before, which it lets go of only when it has the next."""


class SharedBatchPool:
    """Places for one batch each, uint8 [S,B,H,W,3], shared once and used again and again: `tasks` + LENT of them.

    Sharing anew for each batch means page faults on both sides and a file handle handed over for each tensor, which
    cost a third of the decoding of a face. A slot is `take`n for a task; once a worker has filled it, it is lent as a
    tensor, and is free again when nothing refers to that tensor's memory any more. So many tasks can be taken at once
    whatever is lent.

    Raises UserError where there is too little shared memory.
    """

    def __init__(self, tasks: int, batch: int, image_size: tuple[int, int]) -> None:
        shape = (tasks + LENT, batch, *image_size, 3)
        try:
            self.image_SBHW3 = torch.empty(shape, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"workers: they need {math.prod(shape) / 1e6:.0f} MB of shared memory for {shape[0]} x {batch} images: "
                f"the machine does not give it ({' '.join(str(error).split())}); ask for fewer workers or smaller "
                "batches, or give /dev/shm more room"
            ) from None
        self._view_SBHW3 = self.image_SBHW3.numpy()
        self._free: deque[int] = deque(range(shape[0]))
        self._taken: set[int] = set()

    def acquire(self) -> int:
        """A free slot for a task."""
        slot = self._free.popleft()
        self._taken.add(slot)
        return slot

    def get(self, slot: int) -> torch.Tensor:
        """The images [B,H,W,3] of a task that is done, the caller's for good.

        It is the slot itself; a copy only where the caller has not let go of LENT earlier ones.
        """
        self._taken.remove(slot)
        if len(self._view_SBHW3) - len(self._free) - len(self._taken) > LENT:
            self._free.append(slot)
            return self.image_SBHW3[slot].clone()
        # torch keeps this array alive as long as any tensor looks at its memory.
        lent_BHW3 = self._view_SBHW3[slot]
        weakref.finalize(lent_BHW3, self._free.append, slot)
        return torch.from_numpy(lent_BHW3)

    def reset(self) -> None:
        """Forget the tasks that were given up; no worker may still be at one."""
        self._free.extend(self._taken)
        self._taken.clear()


class ShardedSampler:
    """Rank r of `world` gets a contiguous share of each global batch, empty where a last batch has fewer images than
    there are ranks, so that all ranks make the same number of steps.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    @property
    def largest(self) -> int:
        """Images of the largest share of a batch."""
        return -(-self.sampler.batch // self.world)

    def steps(self, epoch: int, start_step: int) -> Iterator[SampleRequests]:
        """The draws of each step of an epoch, from `start_step` on."""
        index_T, seed_T = self.sampler.epoch_requests(epoch)
        for step in range(start_step, self.sampler.steps_per_epoch):
            first = step * self.sampler.batch
            size = min(self.sampler.batch, len(index_T) - first)
            share = slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)
            yield SampleRequests(index_T[share], seed_T[share])


PREFETCH = 2
"""Batches each worker is ahead."""


class _Tasks:
    """What the DataLoader hands to workers: the draws of each step left of the epoch that is set, and a slot."""

    def __init__(self, share: ShardedSampler, pool: SharedBatchPool) -> None:
        self.share, self.pool = share, pool
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        return max(self.share.sampler.steps_per_epoch - self.start_step, 0)

    def __iter__(self) -> Iterator[tuple[int, SampleRequests]]:
        # The DataLoader has waited for its workers to drop what they had when it asks for the first task.
        self.pool.reset()
        for draws in self.share.steps(self.epoch, self.start_step):
            yield self.pool.acquire(), draws


class _Filling(Dataset):
    """A worker's side: decodes a batch straight into the slot it is told, and sends no pixels."""

    def __init__(self, dataset: ImageDataset, image_SBHW3: torch.Tensor) -> None:
        self.dataset, self.image_SBHW3 = dataset, image_SBHW3

    def __getitem__(self, task: tuple[int, SampleRequests]) -> tuple[int, FilledBatch]:
        slot, draws = task
        return slot, self.dataset.fill(draws, self.image_SBHW3[slot].numpy())


class Loader:
    """A dataset in a sampler's order; its workers live from the first epoch to `close()`.

    Rank r of `world` gets a contiguous share of each global batch, empty where a last batch has fewer images than there
    are ranks, so that all ranks make the same number of steps. The batches do not depend on `workers` nor on how they
    are started (`start_method`: None for Python's default, or fork, spawn, forkserver), and the global random generator
    is left untouched. With `pin` they lie in page-locked memory.

    Raises UserError where there is too little shared memory for the workers.
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
        self._share = ShardedSampler(sampler, rank, world)
        self._loader: DataLoader | None = None
        if workers > 0:
            # The DataLoader hands out one more task before it passes on what is done.
            tasks = min(PREFETCH * workers + 1, sampler.steps_per_epoch)
            self._pool = SharedBatchPool(tasks, self._share.largest, dataset.image_size)
            self._tasks = _Tasks(self._share, self._pool)
            self._loader = DataLoader(
                _Filling(dataset, self._pool.image_SBHW3),
                sampler=self._tasks,
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=workers,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                worker_init_fn=_prepare_worker,
                multiprocessing_context=start_method,
                generator=torch.Generator().manual_seed(0),
            )

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a whole epoch."""
        return self._share.sampler.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on; one epoch is read at a time."""
        if self._loader is None:
            return map(self._read, self._share.steps(epoch, start_step))
        self._tasks.epoch, self._tasks.start_step = epoch, start_step
        return map(self._receive, iter(self._loader))

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _read(self, draws: SampleRequests) -> Batch:
        image_BHW3 = torch.empty((len(draws.index_B), *self._dataset.image_size, 3), dtype=torch.uint8)
        batch = self._dataset.fill(draws, image_BHW3.numpy()).batch(image_BHW3)
        return batch.pin_memory() if self._pin else batch

    def _receive(self, answer: tuple[int, FilledBatch]) -> Batch:
        slot, filled = answer
        batch = filled.batch(self._pool.get(slot))
        return batch.pin_memory() if self._pin else batch


def _unchanged(item: Any) -> Any:
    return item


def _prepare_worker(_: int) -> None:
    # A signal to stop often goes to a whole group of processes. Whoever reads the batches decides what comes of it, and
    # wants the one under way until then; a worker ends when its reader says so, or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_reader, daemon=True).start()
    prepare_opencv()


def _end_for_reader() -> None:
    reader = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != reader:
        pass
    os._exit(0)
