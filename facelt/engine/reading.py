"""Going through a split: every image once and in order, each rank a share of every batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.data.loader import Loader
from facelt.data.samplers import SequentialSampler
from facelt.engine.data import Split
from facelt.engine.ranks import agree
from facelt.methods import Method
from facelt.parallel import rank, world


@dataclass(frozen=True)
class Reading:
    """How a split is gone through: images at once, processes that decode, where the network is, how many bad images."""

    batch: int
    workers: int
    device: torch.device
    bad: BadImageCount


def evaluation_batches(split: Split, reading: Reading) -> Iterator[Batch]:
    """Every member once, in order, on the device; the last batch may be smaller, empty ones are left out.

    Each rank gets its share of every batch, which may be empty where another's is not: all make the same steps.
    """
    sampler = SequentialSampler(len(split.dataset), reading.batch, members=split.members)
    is_pinned = reading.device.type == "cuda"
    loader = Loader(split.dataset, sampler, workers=reading.workers, pin=is_pinned, rank=rank(), world=world())
    try:
        for item in loader.epoch(0):
            sizes, unusable = agree([item])
            reading.bad.add(unusable)
            if sum(map(sum, sizes)):
                yield item.to(reading.device)
    finally:
        loader.close()


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """The method is in evaluation mode, and afterwards in its own again."""
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)
