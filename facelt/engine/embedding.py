"""From images to an embedding store.

N images, n images of a batch, D feature.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.engine.company import Company
from facelt.engine.data import Preparation, Split
from facelt.engine.handed_on import TrainedModel
from facelt.engine.images import ImageSource
from facelt.engine.reading import Reading, evaluation_batches
from facelt.errors import UserError
from facelt.store import StoreWriter

SETTING = "--max-bad-images"


def sound_images(source: ImageSource, workers: int, limit: int) -> tuple[ImageSource, dict[str, str]]:
    """The source without images that cannot be used, and those by name with the reason; decodes everything once.

    Raises UserError when there are more than `limit`, or nothing is left.
    """
    bad = BadImageCount(limit, SETTING)
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
) -> Path:
    """Writes the store, going on with an unfinished one of the same images and model; returns its folder.

    Under torchrun each process embeds a share of the images with a whole model of its own; the first one begins and
    finishes the store. Shares are whole batches, so that the store is that of one process.

    Raises UserError: an image that cannot be used, a store that exists, a full disk.
    """
    method, device = model.method, next(model.method.parameters()).device
    preparation = Preparation(model.config.data)
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
    company = Company.of_torchrun()
    company.wait_for_turn()
    writer = StoreWriter(
        out,
        source.keys,
        source.identities,
        dict.fromkeys(method.kinds, method.dim),
        meta,
        attributes=source.attributes,
        reachability=len(method.kinds) > 1,
        dtype=dtype,
        share=company.share(len(source.keys), batch),
    )
    company.begin()
    remaining = Split(source.dataset, source.members[writer.rows_done : writer.share.stop])
    batches = evaluation_batches(remaining, Reading(batch, workers, device, BadImageCount(0, SETTING)))
    steps = -(-len(remaining.members) // batch)
    console = Console(stderr=True, quiet=company.rank > 0)
    shown = {"transient": True, "console": console, "disable": not console.is_terminal}
    for item in track(batches, "embedding", total=steps, **shown):
        _write(writer, method.embed(preparation.for_evaluation(item)), item)
    company.finish(writer.finish)
    return out


def _write(writer: StoreWriter, embeddings, item: Batch) -> None:
    by_kind = {kind: value.cpu().numpy() for kind, value in embeddings.by_kind.items()}
    reachability = embeddings.reachability_B
    writer.write(writer.rows_done, by_kind, None if reachability is None else reachability.cpu().numpy())
