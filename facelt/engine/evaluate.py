"""Closed-set accuracy of a method on a split.

N images, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.data.loader import Loader
from facelt.data.samplers import SequentialSampler
from facelt.engine.data import Preparation, Split
from facelt.engine.ranks import agree
from facelt.methods import Method
from facelt.parallel import rank, world


def evaluation_batches(
    split: Split, batch: int, workers: int, device: torch.device, bad: BadImageCount
) -> Iterator[Batch]:
    """Every member once, in order, on the device; the last batch may be smaller, empty ones are left out.

    Each rank gets its share of every batch, which may be empty where another's is not: all make the same steps.
    """
    sampler = SequentialSampler(len(split.dataset), batch, members=split.members)
    loader = Loader(split.dataset, sampler, workers=workers, pin=device.type == "cuda", rank=rank(), world=world())
    try:
        for item in loader.epoch(0):
            sizes, unusable = agree([item])
            bad.add(unusable)
            if sum(map(sum, sizes)):
                yield item.to(device)
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


@torch.no_grad()
def predict(
    method: Method,
    split: Split,
    preparation: Preparation,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    bad: BadImageCount,
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions), int64 [N] each, of all ranks' images that could be read, in order; the method is left in
    its mode.
    """
    none = torch.empty(0, dtype=torch.int64)
    labels, predictions = [none], [none]
    with evaluating(method):
        for item in evaluation_batches(split, batch, workers, device, bad):
            logits = method.logits(preparation.for_evaluation(item))
            predictions.append(logits.shares.gather(logits.argmax()).cpu())
            labels.append(logits.shares.gather(item.label_B).cpu())
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()
