"""The streams of batches a method asks for, opened on this rank."""

import torch

from facelt.config import TrainConfig
from facelt.data.loader import Loader
from facelt.data.samplers import SAMPLERS
from facelt.engine.data import TrainingData
from facelt.methods import Method
from facelt.parallel import rank, world


def open_streams(method: Method, data: TrainingData, config: TrainConfig, device: torch.device) -> list[Loader]:
    """A loader for each of the method's streams, of this rank's share of every global batch."""
    train = data.train
    return [
        Loader(
            train.dataset,
            SAMPLERS[stream.sampler](train.dataset.labels, config.optim.batch, config.seed, members=train.members),
            workers=config.data.workers,
            pin=device.type == "cuda",
            rank=rank(),
            world=world(),
        )
        for stream in method.streams()
    ]
