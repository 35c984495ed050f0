"""Embeddings of images that are not to lie in a file of their own. N images, D feature."""

from typing import NamedTuple

import numpy as np
import torch

from facelt.data.bad_images import BadImageCount
from facelt.engine.data import Preparation, Split
from facelt.engine.handed_on import TrainedModel
from facelt.engine.images import ImageSource
from facelt.engine.reading import Reading, evaluation_batches
from facelt.errors import UserError


class InMemory(NamedTuple):
    """One kind of embedding, float32 [N,D], and reachability, float32 [N], where the model has a memory."""

    embedding_ND: np.ndarray
    reachability_N: np.ndarray | None


@torch.no_grad()
def embed_in_memory(
    model: TrainedModel, source: ImageSource, kind: str, *, batch: int, workers: int, setting: str
) -> InMemory:
    """All images of the source, in its order.

    Raises UserError: another kind, or an image that cannot be used, which `setting` does not allow.
    """
    method = model.method
    if kind not in method.kinds:
        raise UserError(f"the model makes no embedding of kind {kind!r}, only {', '.join(method.kinds)}")
    preparation = Preparation(model.config.data)
    split = Split(source.dataset, source.members)
    device = next(method.parameters()).device
    rows, reachability = [], []
    for item in evaluation_batches(split, Reading(batch, workers, device, BadImageCount(0, setting))):
        embeddings = method.embed(preparation.for_evaluation(item))
        rows.append(embeddings.by_kind[kind].float().cpu().numpy())
        if embeddings.reachability_B is not None:
            reachability.append(embeddings.reachability_B.float().cpu().numpy())
    return InMemory(np.concatenate(rows), np.concatenate(reachability) if reachability else None)
