"""Closed-set accuracy of a method on a split.

N images, C classes.
"""

from collections.abc import Iterator

import numpy as np
import torch

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.data.loader import Loader
from facelt.data.samplers import SequentialSampler
from facelt.engine.data import Preparation, Split
from facelt.methods import Method


def evaluation_batches(
    split: Split, batch: int, workers: int, device: torch.device, bad: BadImageCount
) -> Iterator[Batch]:
    """Every member once, in order, on the device; the last batch may be smaller, empty ones are left out."""
    sampler = SequentialSampler(len(split.dataset), batch, members=split.members)
    loader = Loader(split.dataset, sampler, workers=workers, pin=device.type == "cuda")
    try:
        for item in loader.epoch(0):
            bad.add(item.bad)
            if len(item):
                yield item.to(device)
    finally:
        loader.close()


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
    """(labels, predictions), int64 [N] each, of the images that could be read; the method is left in its mode."""
    was_training = method.training
    method.eval()
    none = torch.empty(0, dtype=torch.int64)
    labels, predictions = [none], [none]
    for item in evaluation_batches(split, batch, workers, device, bad):
        predictions.append(method.logits(preparation.for_evaluation(item)).argmax().cpu())
        labels.append(item.label_B.cpu())
    method.train(was_training)
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()
