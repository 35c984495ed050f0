"""Closed-set predictions of a method on a split. N images."""

import numpy as np
import torch

from facelt.engine.data import Preparation, Split
from facelt.engine.reading import Reading, evaluating, evaluation_batches
from facelt.methods import Method


@torch.no_grad()
def predict(method: Method, split: Split, preparation: Preparation, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions), int64 [N] each, of all ranks' images that could be read, in order; the method is left in
    its mode.
    """
    none = torch.empty(0, dtype=torch.int64)
    labels, predictions = [none], [none]
    with evaluating(method):
        for item in evaluation_batches(split, reading):
            logits = method.logits(preparation.for_evaluation(item))
            predictions.append(logits.shares.gather(logits.argmax()).cpu())
            labels.append(logits.shares.gather(item.label_B).cpu())
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()
