"""Prediction: the one loop that runs a trained method over the images of a split, and open-set predictions.

N images, of a batch or of all that are collected; n of them on this rank; C classes, K experts, D feature.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from facelt.data.batch import BadImage, BadImageTracker, Batch
from facelt.data.kind import Preprocessing, Split, TrainingData
from facelt.data.loader import Loader
from facelt.data.samplers import SequentialSampler
from facelt.distributed.comm import BatchSplit, is_distributed, rank, stack_ranks, world_size
from facelt.distributed.launch import all_gather_str, received_signal
from facelt.errors import Interrupted, UserError
from facelt.inference.model import TrainedModel
from facelt.methods.base import Method, TrainBatch
from facelt.methods.multi_expert import MultiExpertMethod
from facelt.openset.rejection import ModelOutputs, OpenSetScorer
from recordio_tools.progress import ProgressFn, no_progress, track

Field = Literal[
    "label",
    "index",
    "image",
    "inputs",
    "features",
    "logits",
    "reachability",
    "prediction",
    "expert_predictions",
    "direct",
    "meta",
    "meta_unit",
    "embedding_reachability",
]
_EMBEDDING_FIELDS = frozenset({"direct", "meta", "meta_unit", "embedding_reachability"})
_LOGIT_FIELDS = frozenset({"logits", "reachability", "prediction", "expert_predictions"})


@dataclass(frozen=True)
class EvalLoaderConfig:
    """Options for iterating over a split: batch size, decode workers, device, bad-image budget."""

    batch: int
    workers: int
    device: torch.device
    bad_images: BadImageTracker
    progress: ProgressFn = no_progress


@dataclass(frozen=True)
class Predictor:
    """A method, the preprocessing of its input, and the options of the loader that feeds it."""

    method: Method
    preprocessing: Preprocessing
    loader: EvalLoaderConfig

    @classmethod
    def of(
        cls,
        model: TrainedModel,
        batch: int,
        workers: int,
        bad_images: BadImageTracker | None = None,
        progress: ProgressFn = no_progress,
    ) -> "Predictor":
        """A predictor on the model's device; `bad_images` defaults to the budget of the model's configuration."""
        if bad_images is None:
            bad_images = BadImageTracker(model.config.data.max_bad_images)
        device = next(model.method.parameters()).device
        loader = EvalLoaderConfig(batch, workers, device, bad_images, progress)
        return cls(model.method, model.config.data.preprocessing(), loader)


@dataclass(frozen=True)
class Predictions:
    """The requested fields of the images that could be read, of all ranks, in the split's order and on the CPU.

    A field that was not requested is None, and so is a reachability if the method has no memory. Labels, dataset
    indices and predictions are int64, all else is float32. `reachability_N` belongs to the image itself,
    `embedding_reachability_N` to the embedding, which may be averaged with the mirror image's.

    `image_nHW3`, uint8 as decoded, and `inputs` of the network are this rank's own and stay on the device.
    """

    label_N: torch.Tensor | None = None
    index_N: torch.Tensor | None = None
    image_nHW3: torch.Tensor | None = None
    inputs: TrainBatch | None = None
    feature_ND: torch.Tensor | None = None
    logit_NC: torch.Tensor | None = None
    reachability_N: torch.Tensor | None = None
    prediction_N: torch.Tensor | None = None
    expert_prediction_NK: torch.Tensor | None = None
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    embedding_reachability_N: torch.Tensor | None = None


def predict(
    predictor: Predictor, split: Split, fields: Collection[Field], *, flip: bool = True, title: str = ""
) -> Iterator[Predictions]:
    """Yields the fields of each batch of members, computed without gradients by the method in evaluation mode.

    Nothing is computed that was not requested and nothing is kept of a batch, so that a caller may reduce fields of
    size N x C as they come. With `flip` an embedding is that of the mean feature of image and mirror image. On several
    ranks each reads its share of every batch, and all must request the same fields. A batch of which no image can be
    read, and an empty split's only one, have every field in its type and shape. `title` labels the reported progress.

    Raises UserError if more images than allowed cannot be read, and for expert predictions of a method without experts;
    Interrupted on all ranks after a signal to one of them.
    """
    method, loader = predictor.method, predictor.loader
    if unknown := set(fields) - set(get_args(Field)):
        raise ValueError(f"unknown fields {sorted(unknown)}")
    if "expert_predictions" in fields and not isinstance(method, MultiExpertMethod):
        raise UserError(f"{type(method).__name__} has no experts: train a method with several, such as independent")
    batches = iterate_split(split, loader)
    if title:
        batches = track(batches, title, -(-len(split.members) // loader.batch), loader.progress)
    with _evaluation_mode(method):
        for batch, batch_split in batches:
            yield _forward(predictor, batch, batch_split, fields, flip)


def predict_all(
    predictor: Predictor, split: Split, fields: Collection[Field], *, flip: bool = True, title: str = ""
) -> Predictions:
    """Returns the fields of a whole split, except `image` and `inputs`. Raises as `predict` does."""
    parts = list(predict(predictor, split, fields, flip=flip, title=title))
    return Predictions(**{name: _concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def iterate_split(split: Split, loader: EvalLoaderConfig) -> Iterator[tuple[Batch, BatchSplit]]:
    """Yields every member once, in order: this rank's images of a batch, on the device, and each rank's number of them.

    All ranks make the same steps, so a rank's part of a batch may be empty. An empty split has one empty batch.
    """
    sampler = SequentialSampler(len(split.dataset), loader.batch, members=split.members)
    is_pinned = loader.device.type == "cuda"
    batches = Loader(split.dataset, sampler, workers=loader.workers, pin=is_pinned, rank=rank(), world=world_size())
    try:
        for batch in batches.batches(0) if len(split.members) else [_empty_batch(split)]:
            sizes, bad = sync_step_info([batch])
            loader.bad_images.add(bad)
            yield batch.to(loader.device), BatchSplit(tuple(size for (size,) in sizes))
    finally:
        batches.close()


def sync_step_info(batches: Sequence[Batch]) -> tuple[list[list[int]], tuple[BadImage, ...]]:
    """Returns the number of images of each rank and batch of a step, [W][batches], and the bad images of all ranks.

    Raises Interrupted on all ranks after a signal to one of them.
    """
    bad = tuple(image for batch in batches for image in batch.bad_images)
    sizes = [len(batch) for batch in batches]
    table = stack_ranks(torch.tensor([*sizes, len(bad), received_signal()])).tolist()
    if number := max(row[-1] for row in table):
        raise Interrupted(number)
    if is_distributed() and any(row[-2] for row in table):
        bad = tuple(BadImage(*image) for text in all_gather_str(json.dumps(bad)) for image in json.loads(text))
    return [row[:-2] for row in table], bad


@contextmanager
def _evaluation_mode(method: Method) -> Iterator[None]:
    """Sets evaluation mode and restores the former mode afterwards."""
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


@torch.no_grad()
def _forward(
    predictor: Predictor, batch: Batch, batch_split: BatchSplit, fields: Collection[str], flip: bool
) -> Predictions:
    method, requested = predictor.method, frozenset(fields)
    inputs = TrainBatch(predictor.preprocessing.for_evaluation(batch), batch.label_B)
    image_n3HW = inputs.image_B3HW

    def gather(value_n: torch.Tensor) -> torch.Tensor:
        return batch_split.gather(value_n.float() if value_n.is_floating_point() else value_n).cpu()

    values: dict[str, Any] = {
        "label_N": gather(batch.label_B) if "label" in requested else None,
        "index_N": gather(batch.index_B) if "index" in requested else None,
        "image_nHW3": batch.image_BHW3 if "image" in requested else None,
        "inputs": inputs if "inputs" in requested else None,
        "feature_ND": gather(method.features(image_n3HW)) if "features" in requested else None,
    }
    if requested & _LOGIT_FIELDS:
        reachability_n = None
        if "expert_predictions" in requested:
            experts, logits = method.predict_all(image_n3HW)
            values["expert_prediction_NK"] = torch.stack([gather(expert.argmax()) for expert in experts], dim=1)
        else:
            logits, reachability_n = method.logits_and_reachability(image_n3HW)
        if "logits" in requested:
            values["logit_NC"] = logits.full_BC.float().cpu()
        if "prediction" in requested:
            values["prediction_N"] = gather(logits.argmax())
        if "reachability" in requested and reachability_n is not None:
            values["reachability_N"] = gather(reachability_n)
    if requested & _EMBEDDING_FIELDS:
        embeddings = method.embed(image_n3HW) if flip else method.embed_features(method.features(image_n3HW))
        by_kind = embeddings.by_kind
        values["embeddings"] = {kind: gather(by_kind[kind]) for kind in by_kind if kind in requested}
        if "embedding_reachability" in requested and embeddings.reachability_B is not None:
            values["embedding_reachability_N"] = gather(embeddings.reachability_B)
    return Predictions(**values)


def _empty_batch(split: Split) -> Batch:
    none_n = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty((0, *split.dataset.image_size, 3), dtype=torch.uint8), none_n, none_n, none_n)


def _concatenate(parts: list) -> Any:
    if isinstance(parts[0], dict):
        return {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else None


class OpenSetPredictions(NamedTuple):
    """Predictions and rejection scores of the images that could be read, in order; numpy vectors [N].

    `class_N` has the largest logit, and `confidence_N` is its probability. The other columns are those of
    `OpenSetScores`, with its class as `open_class_N`. `expert_prediction_NK` is None unless it was requested.
    """

    label_N: np.ndarray
    index_N: np.ndarray
    class_N: np.ndarray
    confidence_N: np.ndarray
    open_class_N: np.ndarray
    decision_score_N: np.ndarray
    score_N: np.ndarray
    unknown_N: np.ndarray
    expert_prediction_NK: np.ndarray | None = None

    def reject_below(self, threshold: float) -> np.ndarray:
        """Returns the predicted classes, int64 [N]; -1 for images below the threshold or unknown at any threshold."""
        return np.where(self.unknown_N | (self.decision_score_N < threshold), -1, self.open_class_N)

    def subset(self, position_M: np.ndarray) -> "OpenSetPredictions":
        """Returns the predictions at these positions, or under this mask."""
        return OpenSetPredictions(*(None if column is None else column[position_M] for column in self))


def predict_open_set(
    predictor: Predictor, split: Split, scorer: OpenSetScorer, *, experts: bool = False, title: str = ""
) -> OpenSetPredictions:
    """Predicts a split and scores it batch by batch. Raises UserError if the model lacks an output the scorer needs."""
    fields = ["label", "index", "inputs", "logits", "reachability"] + ["expert_predictions"] * experts

    def logits_fn(image_N3HW: torch.Tensor) -> torch.Tensor:
        return predictor.method.logits(image_N3HW).full_BC.float().cpu()

    std, batches = predictor.preprocessing.std, []
    for part in predict(predictor, split, fields, title=title):
        scores = scorer.score(ModelOutputs(part.logit_NC, part.reachability_N, part.inputs.image_B3HW, std, logits_fn))
        confidence_N, class_N = part.logit_NC.double().softmax(dim=1).amax(dim=1), part.logit_NC.argmax(dim=1)
        batches.append((part.label_N, part.index_N, class_N, confidence_N, *scores, part.expert_prediction_NK))
    columns = map(_concatenate, zip(*batches, strict=True))
    return OpenSetPredictions(*(None if column is None else column.numpy() for column in columns))


def fit_scorer(scorer: OpenSetScorer, predictor: Predictor, data: TrainingData) -> None:
    """Fits a scorer that needs the training images, which are not augmented."""
    if scorer.needs_training_images:
        scorer.fit(
            lambda: (
                (part.logit_NC, part.label_N)
                for part in predict(predictor, data.train_plain, ("label", "logits"), title="training images")
            )
        )
