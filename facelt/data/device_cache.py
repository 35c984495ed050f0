"""Decoded training images cached on the device, for sets that fit, such as CIFAR.

N images of the dataset, M members of it that are cached, B images of a batch, H height, W width.
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

_MAX_MEMORY_FRACTION = 0.5
"""Largest fraction of the device's free memory that the cache may take; the network needs the rest."""

_MEMINFO = Path("/proc/meminfo")


class DeviceImageCache:
    """The members of a dataset as one tensor, uint8 [M,H,W,3], filled at its first use.

    `read` returns batches that together hold every member once, in order. Only for datasets without random
    augmentation. Every rank caches all members, since its shard of a batch may hold any of them.

    Raises UserError, before decoding anything, if they would take more than half of the free memory,
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
        self._bad_images: dict[int, BadImage] = {}
        self._image_MHW3: torch.Tensor | None = None
        _check_memory(self._shape, device, ranks)

    def batch(self, requests: SampleRequests) -> Batch:
        """Returns the batch of these requests with its pixels on the device, without its bad images."""
        if self._image_MHW3 is None:
            self._image_MHW3 = self._fill()
        row_B = self._row_N[requests.index_B]
        usable_B = row_B >= 0
        bad_images = tuple(self._bad_images[index] for index in requests.index_B[~usable_B].tolist())
        index_B = requests.index_B[usable_B]
        image_BHW3 = self._image_MHW3.index_select(0, torch.from_numpy(row_B[usable_B]).to(self._device))
        columns = (self.labels[index_B], index_B, requests.seed_B[usable_B])
        return Batch(image_BHW3, *map(torch.from_numpy, columns), bad_images)

    def _fill(self) -> torch.Tensor:
        image_MHW3 = torch.empty(self._shape, dtype=torch.uint8, device=self._device)
        requested = rows = 0
        for batch in self._read():
            member_B = self._members[requested : requested + len(batch) + len(batch.bad_images)]
            index_B = batch.index_B.numpy()
            self._bad_images.update(zip(member_B[~np.isin(member_B, index_B)].tolist(), batch.bad_images, strict=True))
            self._row_N[index_B] = np.arange(rows, rows + len(batch))
            image_MHW3[rows : rows + len(batch)] = batch.image_BHW3.to(self._device, non_blocking=True)
            requested, rows = requested + len(member_B), rows + len(batch)
        return image_MHW3


class CachedLoader:
    """Batches of cached images in a sampler's order: the same as a Loader's, with the same shards."""

    def __init__(self, images: DeviceImageCache, sampler: Sampler, *, rank: int = 0, world: int = 1) -> None:
        self._batch: Callable[[SampleRequests], Batch] | None = images.batch
        self._shards = ShardedSampler(sampler, rank, world)

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a whole epoch."""
        return self._shards.sampler.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch from `start_step` on."""
        return map(self._batch, self._shards.steps(epoch, start_step))

    def close(self) -> None:
        """Releases the images."""
        self._batch = None


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be allocated on a device.

    A GPU's include what torch holds in its cache. The host's are what Linux reports as available, or elsewhere the
    whole memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if _MEMINFO.exists():
        rows = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_memory(shape: tuple[int, ...], device: torch.device, ranks: int) -> None:
    needed, free = math.prod(shape) * ranks, free_memory(device)
    if needed > _MAX_MEMORY_FRACTION * free:
        copies = f" in each of {ranks} processes" if ranks > 1 else ""
        raise UserError(
            f"data.cache_on_device: {shape[0]} images of {shape[1]} x {shape[2]} pixels{copies} need "
            f"{needed / 1e9:.2f} GB, more than {_MAX_MEMORY_FRACTION:.0%} of the {free / 1e9:.2f} GB free on {device}; "
            "set data.cache_on_device=false"
        )
