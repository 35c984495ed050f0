"""Batches of an epoch, decoded by worker processes.

Shapes: S slots of shared memory, B images of a batch, H height, W width.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from facelt.data.batch import Batch, Draws, Filled
from facelt.data.decode import prepare_opencv
from facelt.data.image_dataset import ImageDataset
from facelt.data.samplers import Sampler
from facelt.errors import UserError

PREFETCH = 2
"""Batches each worker is ahead."""


class _RankShare:
    """This rank's draws of each global batch, and of what is left of the epoch that is set; read by the DataLoader.

    Each comes with the slot to decode it into.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int, slots: int) -> None:
        self.sampler, self.rank, self.world, self.slots = sampler, rank, world, slots
        self.epoch, self.start_step = 0, 0

    @property
    def largest(self) -> int:
        """Images of the largest share."""
        return -(-self.sampler.batch // self.world)

    def __len__(self) -> int:
        return max(self.sampler.steps_per_epoch - self.start_step, 0)

    def __iter__(self) -> Iterator[tuple[int, Draws]]:
        return ((step % self.slots, draws) for step, draws in enumerate(self.steps(self.epoch, self.start_step)))

    def steps(self, epoch: int, start_step: int) -> Iterator[Draws]:
        index_T, seed_T = self.sampler.draws(epoch)
        for step in range(start_step, self.sampler.steps_per_epoch):
            first = step * self.sampler.batch
            size = min(self.sampler.batch, len(index_T) - first)
            share = slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)
            yield Draws(index_T[share], seed_T[share])


class _Slots(Dataset):
    """A worker's side: decodes a batch straight into the slot it is told, and sends no pixels."""

    def __init__(self, dataset: ImageDataset, image_SBHW3: torch.Tensor) -> None:
        self.dataset, self.image_SBHW3 = dataset, image_SBHW3

    def __getitem__(self, task: tuple[int, Draws]) -> tuple[int, Filled]:
        slot, draws = task
        return slot, self.dataset.fill(draws, self.image_SBHW3[slot].numpy())


class Loader:
    """A dataset in a sampler's order; its workers live from the first epoch to `close()`.

    Rank r of `world` gets a contiguous share of each global batch, empty where a last batch has fewer images than there
    are ranks, so that all ranks make the same number of steps. The batches do not depend on `workers` nor on how they
    are started (`start_method`: None for Python's default, or fork, spawn, forkserver), and the global random generator
    is left untouched. With `pin` they lie in page-locked memory.

    Workers decode into memory that is shared once and used again and again: sharing anew for each batch means page
    faults on both sides and a file handle handed over for each tensor, which cost a third of the decoding. A batch is
    copied out when it arrives, into page-locked memory where that is wanted, so that it stays as it is.

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
        # The DataLoader hands out the draws of the batch that is PREFETCH * workers ahead before it gives us one.
        slots = min(PREFETCH * workers + 1, max(sampler.steps_per_epoch, 1))
        self._share = _RankShare(sampler, rank, world, slots)
        self._slots: _Slots | None = None
        self._loader: DataLoader | None = None
        if workers > 0:
            shape = (slots, self._share.largest, *dataset.image_size, 3)
            self._slots = _Slots(dataset, _shared(shape, workers))
            self._loader = DataLoader(
                self._slots,
                sampler=self._share,
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

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on; one epoch is read at a time."""
        if self._loader is None:
            return map(self._read, self._share.steps(epoch, start_step))
        self._share.epoch, self._share.start_step = epoch, start_step
        return map(self._receive, iter(self._loader))

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _read(self, draws: Draws) -> Batch:
        image_BHW3 = torch.empty((len(draws.index_B), *self._dataset.image_size, 3), dtype=torch.uint8)
        batch = self._dataset.fill(draws, image_BHW3.numpy()).batch(image_BHW3)
        return batch.pin_memory() if self._pin else batch

    def _receive(self, answer: tuple[int, Filled]) -> Batch:
        slot, filled = answer
        batch = filled.batch(self._slots.image_SBHW3[slot])
        return batch.pin_memory() if self._pin else replace(batch, image_BHW3=batch.image_BHW3.clone())


def _shared(shape: tuple[int, ...], workers: int) -> torch.Tensor:
    """Memory, uint8, that this process and its workers share."""
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise UserError(
            f"workers: {workers} need {math.prod(shape) / 1e6:.0f} MB of shared memory for batches of {shape[1]} images, "
            f"and the machine does not give it ({' '.join(str(error).split())}); ask for fewer workers or smaller "
            "batches, or give /dev/shm more room"
        ) from None


def _unchanged(item: Any) -> Any:
    return item


def _prepare_worker(_: int) -> None:
    prepare_opencv()
