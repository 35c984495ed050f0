"""The streams of batches a method asks for, opened on this rank."""

import os
from collections.abc import Iterator

import numpy as np
import torch

from facelt.config.registry import SAMPLERS
from facelt.config.train import StageConfig, TrainConfig
from facelt.data.batch import Batch
from facelt.data.device_cache import CachedLoader, DeviceImageCache
from facelt.data.loader import Loader
from facelt.data.module import Split, TrainingData
from facelt.data.samplers import RngStream as Purpose
from facelt.data.samplers import SequentialSampler, TrainingSampler, hash_words
from facelt.distributed.comm import rank, world_size
from facelt.errors import UserError
from facelt.inference.predict import sync_step_info
from facelt.methods.base import Method, Stream
from facelt.metrics.classification import SHOT_BANDS, shot_bands


def build_train_loaders(
    method: Method, data: TrainingData, config: TrainConfig, stage: StageConfig, device: torch.device
) -> list[Loader] | list[CachedLoader]:
    """A loader for each of the method's streams, of this rank's share of every global batch.

    Raises UserError where a stream has too few images, or where the images are to stay on the device and are too many
    for it.
    """
    train, workers, batch = data.train, config.data.workers, (stage.optim or config.optim).batch
    samplers = [build_sampler(stream, data, batch, config.seed, stage.epochs) for stream in method.streams()]
    place = {"rank": rank(), "world": world_size()}
    if config.data.cache_on_device:
        # GPUs have each their own memory, the processes of one machine share the host's.
        ranks = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        images = DeviceImageCache(
            train.dataset,
            train.members,
            device,
            lambda: _every_image(train, batch, workers, device),
            ranks,
        )
        return [CachedLoader(images, sampler, **place) for sampler in samplers]
    pin = device.type == "cuda"
    return [Loader(train.dataset, sampler, workers=workers, pin=pin, **place) for sampler in samplers]


def build_sampler(stream: Stream, data: TrainingData, batch: int, seed: int, epochs: int) -> TrainingSampler:
    """A stream's sampler of the training images; shots by the paper's convention, many > 100 and few < 20.

    Raises UserError where no class has those shots, or too few images for a batch.
    """
    train, members = data.train, data.train.members
    if stream.shots is not None:
        in_band_C = shot_bands(data.train_counts, "paper") == SHOT_BANDS.index(stream.shots)
        members = members[in_band_C[train.labels]]
        if not len(members):
            raise UserError(
                f"data: no training class has {stream.shots} shots; choose a method that asks for none of them"
            )
    if stream.draw:
        seed = int(hash_words(Purpose.STREAM_SEED, seed, stream.draw) >> np.uint64(1))
    return SAMPLERS[stream.sampler](train.dataset.labels, batch, seed, members, epochs=epochs)


def _every_image(split: Split, batch: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """Yields every member once, in order, on each rank. Raises Interrupted on all ranks if one was asked to stop."""
    sampler = SequentialSampler(len(split.dataset), batch, members=split.members)
    loader = Loader(split.dataset, sampler, workers=workers, pin=device.type == "cuda")
    try:
        for item in loader.batches(0):
            sync_step_info([item])
            yield item
    finally:
        loader.close()
