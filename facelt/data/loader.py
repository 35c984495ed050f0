"""Batches of an epoch, decoded by worker processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from facelt.data.batch import Batch, Collate, Draw
from facelt.data.decode import prepare_opencv
from facelt.data.image_dataset import ImageDataset
from facelt.data.samplers import Sampler


class _RankShare:
    """This rank's draws of each remaining global batch of the epoch that is set; read by the DataLoader."""

    def __init__(self, sampler: Sampler, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        return max(self.sampler.steps_per_epoch - self.start_step, 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        index_T, seed_T = self.sampler.draws(self.epoch)
        for step in range(self.start_step, self.sampler.steps_per_epoch):
            first = step * self.sampler.batch
            size = min(self.sampler.batch, len(index_T) - first)
            share = slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)
            yield [Draw(*draw) for draw in zip(index_T[share].tolist(), seed_T[share].tolist(), strict=True)]


class Loader:
    """A dataset in a sampler's order; its workers live from the first epoch to `close()`.

    Rank r of `world` gets a contiguous share of each global batch, empty where a last batch has fewer images than there
    are ranks, so that all ranks make the same number of steps. The batches do not depend on `workers` nor on how they
    are started (`start_method`: None for Python's default, or fork, spawn, forkserver), and the global random generator
    is left untouched.
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
        self._share = _RankShare(sampler, rank, world)
        self._loader: DataLoader | None = DataLoader(
            dataset,
            batch_sampler=self._share,
            collate_fn=Collate(dataset.image_size),
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=start_method if workers > 0 else None,
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a whole epoch."""
        return self._share.sampler.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on; one epoch is read at a time."""
        self._share.epoch, self._share.start_step = epoch, start_step
        return iter(self._loader)

    def close(self) -> None:
        """End the workers."""
        self._loader = None


def _prepare_worker(_: int) -> None:
    prepare_opencv()
