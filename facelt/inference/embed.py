"""From images to an embedding store.

N images, n images of a batch, D feature.

Embeddings of images that are not to lie in a file of their own. N images, D feature.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.distributed.rendezvous import WorkerGroup
from facelt.errors import UserError
from facelt.inference.model import TrainedModel
from facelt.inference.predict import EvalLoaderConfig, Predictor, iterate_split, predict, predict_all
from facelt.inference.sources import ImageSource
from facelt.store.store import StoreWriter
from recordio_tools.progress import ProgressFn, no_progress

SETTING = "--max-bad-images"


def sound_images(source: ImageSource, workers: int, limit: int) -> tuple[ImageSource, dict[str, str]]:
    """The source without images that cannot be used, and those by name with the reason; decodes everything once.

    Raises UserError when there are more than `limit`, or nothing is left.
    """
    bad = BadImageTracker(limit, SETTING)
    split = Split(source.dataset, source.members)
    for _ in iterate_split(split, EvalLoaderConfig(256, workers, torch.device("cpu"), bad)):
        pass
    if len(bad) == len(source.members):
        raise UserError("none of the images can be used")
    return source.without(set(bad.reasons)), dict(bad.reasons)


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
    method = model.method
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
    predictor = Predictor.of(model, batch, workers, BadImageTracker(0, SETTING), progress)
    for part in predict(predictor, remaining, (*method.kinds, "embedding_reachability"), title="embedding"):
        embeddings = {kind: value.numpy() for kind, value in part.embeddings.items()}
        reachability_N = part.embedding_reachability_N
        writer.write(writer.rows_done, embeddings, None if reachability_N is None else reachability_N.numpy())
    group.finalize_on_leader(writer.finish)
    return out


class InMemory(NamedTuple):
    """One kind of embedding, float32 [N,D], and reachability, float32 [N], where the model has a memory."""

    embedding_ND: np.ndarray
    reachability_N: np.ndarray | None


def embed_in_memory(
    model: TrainedModel, source: ImageSource, kind: str, *, batch: int, workers: int, setting: str
) -> InMemory:
    """All images of the source, in its order.

    Raises UserError: another kind, or an image that cannot be used, which `setting` does not allow.
    """
    method = model.method
    if kind not in method.kinds:
        raise UserError(f"the model makes no embedding of kind {kind!r}, only {', '.join(method.kinds)}")
    predictor = Predictor.of(model, batch, workers, BadImageTracker(0, setting))
    result = predict_all(predictor, Split(source.dataset, source.members), (kind, "embedding_reachability"))
    reachability_N = result.embedding_reachability_N
    return InMemory(result.embeddings[kind].numpy(), None if reachability_N is None else reachability_N.numpy())
