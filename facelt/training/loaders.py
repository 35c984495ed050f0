"""Training loaders and micro-batches of one rank. W ranks, k micro-batches, M training images, C classes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from facelt.config.registry import SAMPLERS
from facelt.config.train import OptimConfig, StageConfig, TrainConfig
from facelt.data.batch import Batch
from facelt.data.device_cache import CachedLoader, DeviceImageCache
from facelt.data.kind import Split, TrainingData
from facelt.data.loader import Loader
from facelt.data.samplers import RngStream, SequentialSampler, TrainingSampler, hash_words
from facelt.distributed.comm import rank, world_size
from facelt.distributed.ddp import has_enough_images
from facelt.errors import UserError
from facelt.inference.predict import sync_step_info
from facelt.methods.base import Method, SamplerSpec
from facelt.metrics.classification import SHOT_BANDS, shot_bands

# Number of images per rank and batch, [W][batches].
Sizes = Sequence[Sequence[int]]


def require_enough_images(optim: OptimConfig, world: int, device: torch.device) -> None:
    """Raises UserError if batch norm has too few images in a micro-batch of one of `world` processes."""
    if not has_enough_images([[optim.batch // world // optim.accumulate]] * world, device):
        micro = f" x optim.accumulate {optim.accumulate}" if optim.accumulate > 1 else ""
        raise UserError(
            f"optim.batch: {optim.batch} is too small for {world} processes{micro}; each needs at least two images"
        )


def build_train_loaders(
    method: Method, data: TrainingData, config: TrainConfig, stage: StageConfig, device: torch.device
) -> list[Loader] | list[CachedLoader]:
    """Returns a loader for each of the method's samplers; each yields this rank's share of every global batch.

    Raises UserError if a sampler has too few images, and if `data.cache_on_device` needs too much memory.
    """
    train, workers, batch = data.train, config.data.workers, (stage.optim or config.optim).batch
    samplers = [
        build_sampler(stream, data, batch, config.seed, stage.epochs, drop_last=config.data.drop_last)
        for stream in method.sampler_specs()
    ]
    ranks = {"rank": rank(), "world": world_size()}
    if not config.data.cache_on_device:
        pin = device.type == "cuda"
        return [Loader(train.dataset, sampler, workers=workers, pin=pin, **ranks) for sampler in samplers]
    # Each GPU has its own memory; the processes of one machine share the host's.
    sharing = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cache = DeviceImageCache(
        train.dataset, train.members, device, lambda: _decode_all(train, batch, workers, device), sharing
    )
    return [CachedLoader(cache, sampler, **ranks) for sampler in samplers]


def build_sampler(
    stream: SamplerSpec, data: TrainingData, batch: int, seed: int, epochs: int, *, drop_last: bool = True
) -> TrainingSampler:
    """Returns the sampler that a method requests; shot bands follow the paper, many > 100 and few < 20.

    Raises UserError if no class is in the requested shot band, and if there are too few images for a batch.
    """
    train, member_M = data.train, data.train.members
    if stream.shots is not None:
        in_band_C = shot_bands(data.train_counts, "paper") == SHOT_BANDS.index(stream.shots)
        member_M = member_M[in_band_C[train.labels]]
        if not len(member_M):
            raise UserError(f"data: no training class has {stream.shots} shots; choose a method that does not need any")
    if stream.draw:
        seed = int(hash_words(RngStream.SAMPLER_SEED, seed, stream.draw) >> np.uint64(1))
    return SAMPLERS[stream.sampler](train.dataset.labels, batch, seed, member_M, epochs=epochs, drop_last=drop_last)


def split_micro_batches(
    batches: Sequence[Batch], sizes: Sizes, parts: int, device: torch.device
) -> list[tuple[float, list[Batch]]]:
    """Splits this rank's images of a global batch into `parts` micro-batches; returns (weight, batches) of each.

    Images are assigned round-robin: image i of the global batch belongs to micro-batch i mod k, whichever rank holds
    it. So the micro-batches are the same sets of images on any number of ranks. Those with too few images for batch
    norm are dropped on all ranks; a weight is a micro-batch's share of the remaining images.
    """
    counts = [micro_batch_sizes(sizes, part, parts) for part in range(parts)]
    usable = [part for part in range(parts) if has_enough_images(counts[part], device)]
    total = sum(sum(map(sum, counts[part])) for part in usable)
    batches = [batch.to(device) for batch in batches]
    return [(sum(map(sum, counts[part])) / total, _micro_batch(batches, sizes, part, parts)) for part in usable]


def micro_batch_sizes(sizes: Sizes, part: int, parts: int) -> list[list[int]]:
    """Returns the sizes [W][batches] of one micro-batch."""
    by_batch = [
        [len(range(size)[micro_batch_slice(size_W, owner, part, parts)]) for owner, size in enumerate(size_W)]
        for size_W in zip(*sizes, strict=True)
    ]
    return [list(row) for row in zip(*by_batch, strict=True)]


def micro_batch_slice(size_W: Sequence[int], owner: int, part: int, parts: int) -> slice:
    """Returns the slice of rank `owner`'s images that belong to a micro-batch."""
    return slice((part - sum(size_W[:owner])) % parts, size_W[owner], parts)


def _micro_batch(batches: Sequence[Batch], sizes: Sizes, part: int, parts: int) -> list[Batch]:
    """Returns this rank's images of one micro-batch; views, not copies."""
    views = []
    for batch, size_W in zip(batches, zip(*sizes, strict=True), strict=True):
        rows = micro_batch_slice(size_W, rank(), part, parts)
        names = ("image_BHW3", "label_B", "index_B", "seed_B")
        views.append(replace(batch, **{name: getattr(batch, name)[rows] for name in names}))
    return views


def _decode_all(split: Split, batch: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """Yields every member once, in order, on each rank. Raises Interrupted on all ranks after a stop request on one."""
    sampler = SequentialSampler(len(split.dataset), batch, members=split.members)
    loader = Loader(split.dataset, sampler, workers=workers, pin=device.type == "cuda")
    try:
        for decoded in loader.batches(0):
            sync_step_info([decoded])
            yield decoded
    finally:
        loader.close()
