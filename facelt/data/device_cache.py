"""How much memory is left on a device.

Images that are decoded once and stay on the device: for sets that fit, such as CIFAR.

Shapes: N images of the dataset, M members of it that are kept, B images of a batch, H height, W width.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from facelt.data.batch import BadImage, Batch, SampleRequests
from facelt.data.dataset import ImageDataset
from facelt.data.loader import ShardedSampler
from facelt.data.samplers import Sampler
from facelt.errors import UserError

_MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: of a GPU what is free or only kept by torch; of the host what Linux says is
    available, elsewhere all there is.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if _MEMINFO.exists():
        rows = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


MAX_MEMORY_FRACTION = 0.5
"""Of the memory that is free on the device: the network needs the rest."""


class DeviceImageCache:
    """The members of a dataset as one tensor, uint8 [M,H,W,3], filled at its first use.

    `read` gives batches that together hold every member once, in order. For datasets whose images are the same at every
    look. Every rank holds all of them, for any image can be in its share of a batch.

    Raises UserError, before decoding anything, if they would take more than MAX_MEMORY_FRACTION of the free memory,
    which `ranks` processes share.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        members: np.ndarray,
        device: torch.device,
        read: Callable[[], Iterable[Batch]],
        ranks: int = 1,
    ) -> None:
        self.labels = dataset.labels
        self._members, self._device, self._read = members, device, read
        self._shape = (len(members), *dataset.image_size, 3)
        self._row_N = np.full(len(dataset), -1)
        self._bad: dict[int, BadImage] = {}
        self._image_MHW3: torch.Tensor | None = None
        _refuse_too_many(self._shape, device, ranks)

    def batch(self, draws: SampleRequests) -> Batch:
        """The batch of these draws, its pixels on the device; unusable images are left out and named."""
        if self._image_MHW3 is None:
            self._image_MHW3 = self._fill()
        row_B = self._row_N[draws.index_B]
        kept_B = row_B >= 0
        bad = tuple(self._bad[index] for index in draws.index_B[~kept_B].tolist())
        index_B = draws.index_B[kept_B]
        image_BHW3 = self._image_MHW3.index_select(0, torch.from_numpy(row_B[kept_B]).to(self._device))
        columns = (self.labels[index_B], index_B, draws.seed_B[kept_B])
        return Batch(image_BHW3, *map(torch.from_numpy, columns), bad)

    def _fill(self) -> torch.Tensor:
        image_MHW3 = torch.empty(self._shape, dtype=torch.uint8, device=self._device)
        met = rows = 0
        for batch in self._read():
            asked = self._members[met : met + len(batch) + len(batch.bad)]
            index_B = batch.index_B.numpy()
            self._bad.update(zip(asked[~np.isin(asked, index_B)].tolist(), batch.bad, strict=True))
            self._row_N[index_B] = np.arange(rows, rows + len(batch))
            image_MHW3[rows : rows + len(batch)] = batch.image_BHW3.to(self._device, non_blocking=True)
            met, rows = met + len(asked), rows + len(batch)
        return image_MHW3


class CachedLoader:
    """Resident images in a sampler's order: the batches that a Loader would give, in the same shares of ranks."""

    def __init__(self, images: DeviceImageCache, sampler: Sampler, *, rank: int = 0, world: int = 1) -> None:
        self._batch: Callable[[SampleRequests], Batch] | None = images.batch
        self._share = ShardedSampler(sampler, rank, world)

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a whole epoch."""
        return self._share.sampler.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on."""
        return map(self._batch, self._share.steps(epoch, start_step))

    def close(self) -> None:
        """Let go of the images."""
        self._batch = None


def _refuse_too_many(shape: tuple[int, ...], device: torch.device, ranks: int) -> None:
    needed, free = math.prod(shape) * ranks, free_memory(device)
    if needed > MAX_MEMORY_FRACTION * free:
        each = f", held by each of {ranks} processes" if ranks > 1 else ""
        raise UserError(
            f"data.cache_on_device: {shape[0]} images of {shape[1]} x {shape[2]} pixels{each} are {needed / 1e9:.2f} "
            f"GB, more than {MAX_MEMORY_FRACTION:.0%} of the {free / 1e9:.2f} GB free on {device}; set "
            "data.cache_on_device=false"
        )
