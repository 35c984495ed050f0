"""From images to an embedding store.

N images, n images of a batch, D feature.

Embeddings of images that are not to lie in a file of their own. N images, D feature.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.batch import BadImageTracker, Batch
from facelt.data.module import Preprocessing, Split
from facelt.distributed.rendezvous import WorkerGroup
from facelt.errors import UserError
from facelt.inference.model import TrainedModel
from facelt.inference.predict import Reading, evaluation_batches
from facelt.inference.sources import ImageSource
from facelt.store.store import StoreWriter
from recordio_tools.progress import ProgressFn, no_progress, track

SETTING = "--max-bad-images"


def sound_images(source: ImageSource, workers: int, limit: int) -> tuple[ImageSource, dict[str, str]]:
    """The source without images that cannot be used, and those by name with the reason; decodes everything once.

    Raises UserError when there are more than `limit`, or nothing is left.
    """
    bad = BadImageTracker(limit, SETTING)
    split = Split(source.dataset, source.members)
    for _ in evaluation_batches(split, Reading(256, workers, torch.device("cpu"), bad)):
        pass
    if len(bad) == len(source.members):
        raise UserError("none of the images can be used")
    return source.without(set(bad.reasons)), dict(bad.reasons)


@torch.no_grad()
def embed_images(
    model: TrainedModel,
    source: ImageSource,
    out: Path,
    *,
    batch: int,
    workers: int,
    dtype: str,
    left_out: dict[str, str],
    progress: ProgressFn = no_progress,
) -> Path:
    """Writes the store, going on with an unfinished one of the same images and model; returns its folder.

    Under torchrun each process embeds a share of the images with a whole model of its own; the first one begins and
    finishes the store. Shares are whole batches, so that the store is that of one process.

    Raises UserError: an image that cannot be used, a store that exists, a full disk.
    """
    method, device = model.method, next(model.method.parameters()).device
    preparation = Preprocessing(model.config.data)
    meta = {
        "model": {
            "weights_sha256": model.weights_sha256,
            "stage": model.card["stage"],
            "backbone": model.config.model.backbone,
            "training_images": model.card.get("training_images"),
            "data_fingerprint": model.card.get("data_fingerprint"),
        },
        "preprocessing": {**model.card["preprocessing"], **source.preparation, "flip_averaged": True},
        "left_out": left_out,
    }
    group = WorkerGroup.from_env()
    group.wait_for_leader()
    writer = StoreWriter(
        out,
        source.keys,
        source.identities,
        dict.fromkeys(method.kinds, method.dim),
        meta,
        attributes=source.attributes,
        reachability=len(method.kinds) > 1,
        dtype=dtype,
        share=group.shard_range(len(source.keys), batch),
    )
    group.signal_ready()
    remaining = Split(source.dataset, source.members[writer.rows_done : writer.share.stop])
    batches = evaluation_batches(remaining, Reading(batch, workers, device, BadImageTracker(0, SETTING)))
    steps = -(-len(remaining.members) // batch)
    for item in track(batches, "embedding", steps, progress):
        _write(writer, method.embed(preparation.for_evaluation(item)), item)
    group.finalize_on_leader(writer.finish)
    return out


def _write(writer: StoreWriter, embeddings, item: Batch) -> None:
    by_kind = {kind: value.cpu().numpy() for kind, value in embeddings.by_kind.items()}
    reachability = embeddings.reachability_B
    writer.write(writer.rows_done, by_kind, None if reachability is None else reachability.cpu().numpy())


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
    preparation = Preprocessing(model.config.data)
    split = Split(source.dataset, source.members)
    device = next(method.parameters()).device
    rows, reachability = [], []
    for item in evaluation_batches(split, Reading(batch, workers, device, BadImageTracker(0, setting))):
        embeddings = method.embed(preparation.for_evaluation(item))
        rows.append(embeddings.by_kind[kind].float().cpu().numpy())
        if embeddings.reachability_B is not None:
            reachability.append(embeddings.reachability_B.float().cpu().numpy())
    return InMemory(np.concatenate(rows), np.concatenate(reachability) if reachability else None)
