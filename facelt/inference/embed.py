"""Embedding of images into a store or into memory. N images, D feature."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from facelt.data.batch import BadImage, BadImageTracker
from facelt.data.kind import Split
from facelt.distributed.launch import resolve_device
from facelt.distributed.rendezvous import WorkerGroup
from facelt.errors import UserError
from facelt.inference.model import TrainedModel, load_model
from facelt.inference.predict import Predictions, Predictor, predict, predict_all
from facelt.inference.sources import ImageSource, open_images
from facelt.store.store import EmbeddingStore, meta_text
from facelt.store.writer import StoreWriter
from recordio_tools.progress import ProgressFn, no_progress


def embed_images(
    model: TrainedModel,
    source: ImageSource,
    out: Path,
    *,
    batch: int,
    workers: int,
    dtype: str,
    max_bad_images: int = 0,
    left_out: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
    setting: str = "--max-bad-images",
    progress: ProgressFn = no_progress,
) -> Path:
    """Writes all kinds of embedding, flip-averaged, to a store and returns its folder; resumes an unfinished store.

    A finished store of the same model, images and settings is left as it is; images are compared by key, not content.
    With `overwrite` any finished store at `out` is replaced instead, once the new one is complete.
    Up to `max_bad_images` unusable images are left out and listed in the store's metadata with `left_out`, reasons by
    name; `setting` names this limit in messages. Under torchrun each process embeds a shard of whole batches with a
    whole model; the leader creates and finishes the store, which equals that of one process.

    Raises UserError: too many unusable images or only such, a store that exists, a full disk.
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
        "preprocessing": {**model.card["preprocessing"], **source.preprocessing, "flip_averaged": True},
        "left_out": dict(left_out),
    }
    layout = {
        "kinds": dict.fromkeys(method.kinds, method.dim),
        "dtype": dtype,
        "reachability": len(method.kinds) > 1,
        "meta": meta,
    }
    group = WorkerGroup.from_env()
    group.wait_for_leader()
    if not overwrite and out.exists() and _is_finished_store(out, source, layout, max_bad_images):
        group.signal_ready()
        return out
    writer = StoreWriter(
        out,
        source.keys,
        source.identities,
        **layout,
        attributes=source.attributes,
        share=group.shard_range(len(source.keys), batch),
        overwrite=overwrite,
    )
    group.signal_ready()
    bad = BadImageTracker(max_bad_images, setting)
    # Other processes may have recorded theirs already; the limit is applied to all of them at the end.
    bad.add(BadImage(*image) for row, image in writer.left_out().items() if row in writer.share)
    predictor = Predictor.of(model, batch, workers, bad, progress)
    remaining = Split(source.dataset, source.members[writer.rows_done : writer.share.stop])
    fields = ("index", *method.kinds, "embedding_reachability")
    parts = predict(predictor, remaining, fields, title="embedding")
    _write_parts(writer, source, parts, batch, bad)

    def finish() -> None:
        # Each process has counted its own; the limit is for all of them.
        bad.add(BadImage(*image) for image in writer.left_out().values())
        if len(bad) == len(source.keys):
            raise UserError("none of the images can be used")
        writer.finish()

    group.finalize_on_leader(finish)
    return out


def _write_parts(
    writer: StoreWriter, source: ImageSource, parts: Iterable[Predictions], batch: int, bad: BadImageTracker
) -> None:
    """Writes batches to a store; each is synchronised with the disk while the next one is embedded."""
    start, pending = writer.rows_done, None
    with ThreadPoolExecutor(1) as thread:
        for part in parts:
            rows = range(start, min(start + batch, writer.share.stop))
            start = rows.stop
            is_missing_n = ~np.isin(source.members[rows.start : rows.stop], part.index_N)
            names = {row: source.dataset.image_name(source.members[row]) for row in compress(rows, is_missing_n)}
            embeddings = {kind: value.numpy() for kind, value in part.embeddings.items()}
            reachability_N = part.embedding_reachability_N
            if pending is not None:
                pending.result()
            pending = thread.submit(
                writer.write,
                rows.start,
                embeddings,
                None if reachability_N is None else reachability_N.numpy(),
                {row: (name, bad.reasons[name]) for row, name in names.items()},
            )
        if pending is not None:
            pending.result()


def _is_finished_store(out: Path, source: ImageSource, layout: Mapping[str, Any], max_bad_images: int) -> bool:
    """Returns whether `out` is the store that would be written, with no more than `max_bad_images` left out."""
    try:
        store = EmbeddingStore.open(out)
    except UserError:
        return False
    actual, expected = dict(store.meta), json.loads(meta_text(len(source.keys), **layout))
    left_out = actual.pop("left_out", None)
    if not isinstance(left_out, dict) or not left_out.items() >= expected.pop("left_out").items():
        return False
    unusable = len(left_out) - len(layout["meta"]["left_out"])
    kept = set(store.keys)
    is_kept_N = [key in kept for key in source.keys]
    columns = (store.keys, store.identities, *store.attributes.values())
    planned = (source.keys, source.identities, *source.attributes.values())
    return (
        unusable <= max_bad_images
        and actual == {**expected, "rows": len(source.keys) - unusable}
        and list(store.attributes) == list(source.attributes)
        and all(column == list(compress(plan, is_kept_N)) for column, plan in zip(columns, planned, strict=True))
    )


class EmbeddingArrays(NamedTuple):
    """Embeddings by kind, float32 [N,D] each, and reachability, float32 [N]; None if the model has no memory."""

    embeddings: dict[str, np.ndarray]
    reachability_N: np.ndarray | None


def compute_embeddings(
    model: TrainedModel, source: ImageSource, kinds: Sequence[str], *, batch: int, workers: int, setting: str
) -> EmbeddingArrays:
    """Embeds all images of the source, in its order, flip-averaged.

    Raises UserError for a kind that the model does not make and for an unusable image, which `setting` does not allow.
    """
    for kind in kinds:
        model.require_kind(kind)
    predictor = Predictor.of(model, batch, workers, BadImageTracker(0, setting))
    result = predict_all(predictor, Split(source.dataset, source.members), (*kinds, "embedding_reachability"))
    reachability_N = result.embedding_reachability_N
    return EmbeddingArrays(
        {kind: value_ND.numpy() for kind, value_ND in result.embeddings.items()},
        None if reachability_N is None else reachability_N.numpy(),
    )


@dataclass(frozen=True)
class ImageEmbedder:
    """A trained model that embeds images in memory; `facelt embed` writes the same values to a store."""

    model: TrainedModel

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of embedding that the model makes."""
        return tuple(self.model.method.kinds)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's images."""
        return self.model.config.data.image_size

    def embed(
        self, images: np.ndarray | str | Path | Sequence[str | Path], *, batch: int = 128, workers: int = 0
    ) -> dict[str, np.ndarray]:
        """Returns float32 [N,D] for each kind, flip-averaged, and `reachability` [N] if the model has a memory.

        `images` is an array uint8 [N,H,W,3], RGB; or a list of image files; or a folder, a .rec or one image file. As
        in `facelt embed` nothing is aligned. Images of another size than `image_size` are resized if the model was
        trained with `data.resize: true`.

        Raises UserError naming the image that cannot be used.
        """
        source = open_images(images, self.model.config)
        arrays = compute_embeddings(self.model, source, self.kinds, batch=batch, workers=workers, setting="embed")
        reachability_N = arrays.reachability_N
        return arrays.embeddings | ({} if reachability_N is None else {"reachability": reachability_N})


def load_embedder(path: str | Path, device: str = "cpu") -> ImageEmbedder:
    """Loads the last finished stage of a run folder, or the model in a stage's folder; `device` is cpu or cuda.

    Raises UserError for a folder without a model and weights that do not belong to its card.
    """
    return ImageEmbedder(load_model(Path(path), resolve_device(device)))
