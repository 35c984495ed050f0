"""Data of the paper's figures: t-SNE layout, F1 gain by class, and top concepts of the memory (OLTR, Figures 3, 6, 7).

N images, C classes, D feature, K concepts of an image or classes of a comparison, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.kind import Split, TrainingData
from facelt.distributed.logits import GatheredFeatures
from facelt.errors import UserError
from facelt.evaluation.evaluate import OPEN_SPLIT, find_split
from facelt.inference.model import TrainedModel
from facelt.inference.predict import Predictions, Predictor, predict, predict_all
from facelt.methods.oltr import DynamicMeta
from facelt.metrics.classification import OPEN_LABEL, class_f1, shot_bands


@dataclass(frozen=True)
class FigureModel:
    """A trained model, its data, and its predictor."""

    model: TrainedModel
    data: TrainingData
    predictor: Predictor

    @classmethod
    def of(cls, model: TrainedModel, batch: int, workers: int) -> "FigureModel":
        """Opens the data of the model's configuration. Raises UserError."""
        return cls(model, model.config.data.open(model.config.seed), Predictor.of(model, batch, workers))

    def bands(self, convention: str) -> np.ndarray:
        """Returns the shot band of each class, an index into `SHOT_BANDS`."""
        return shot_bands(self.data.train_counts, convention)


def _sample(split: Split, images: int, rng: np.random.Generator) -> Split:
    """Returns a random sample of a split, in its order."""
    position_N = rng.choice(len(split.members), min(images, len(split.members)), replace=False)
    return Split(split.dataset, split.members[np.sort(position_N)])


_MIN_IMAGES = 5
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class TsneLayout:
    """Image names, labels (int64 [N], -1 in the open set), and positions (float [N,2])."""

    names: tuple[str, ...]
    label_N: np.ndarray
    position_N2: np.ndarray


def embed_in_plane(source: FigureModel, split: str, *, kind: str, images: int, seed: int) -> TsneLayout:
    """Lays out a sample of embeddings of a split and of the open set, if any, by t-SNE; each has its share of `images`.

    Equal seeds give the same sample and layout. Raises UserError for a kind that the method does not make and for too
    few images.
    """
    source.model.require_kind(kind)
    splits, evaluation = [find_split(source.data, split)], source.data.evaluation
    if split != OPEN_SPLIT and OPEN_SPLIT in evaluation:
        splits.append(evaluation[OPEN_SPLIT])
    total = sum(len(part.members) for part in splits)
    rng = np.random.default_rng(seed)
    samples = [_sample(part, round(images * len(part.members) / max(total, images)), rng) for part in splits]
    results = [predict_all(source.predictor, sample, ("label", "index", kind)) for sample in samples]
    names = [
        sample.dataset.image_name(index)
        for sample, result in zip(samples, results, strict=True)
        for index in result.index_N.tolist()
    ]
    if len(names) < _MIN_IMAGES:
        raise UserError(f"--images: t-SNE needs at least {_MIN_IMAGES} images, there are {len(names)}")
    label_N = torch.cat([result.label_N for result in results]).numpy()
    feature_ND = torch.cat([result.embeddings[kind] for result in results]).numpy()
    return TsneLayout(tuple(names), label_N, _tsne(feature_ND, seed))


def _tsne(feature_ND: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    # A neighbourhood is at most a third of the images.
    perplexity = min(_PERPLEXITY, (len(feature_ND) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(feature_ND)


@dataclass(frozen=True)
class F1Gains:
    """F1 of each class by two models, classes by descending number of training images; -1, the open set, comes last.

    `class_K` and `count_K` are int64; F1 are fractions, NaN for a class that is neither a label nor a prediction.
    """

    class_K: np.ndarray
    count_K: np.ndarray
    f1_K: np.ndarray
    baseline_f1_K: np.ndarray

    @property
    def gain_K(self) -> np.ndarray:
        return self.f1_K - self.baseline_f1_K


def f1_gains(source: FigureModel, baseline: FigureModel, split: str, threshold: float | None) -> F1Gains:
    """Compares the F1 of each class by two models on the same images.

    With a threshold, images with a lower largest probability are rejected, and the open set is one more class that
    should be rejected. Raises UserError if the models have other classes or other images.
    """
    counts_C = source.data.train_counts
    if not np.array_equal(counts_C, baseline.data.train_counts):
        raise UserError("--against: that model was trained on other classes, or on other numbers of their images")
    splits = (split,) if threshold is None else (split, OPEN_SPLIT)
    label_N, prediction_N = _predict_with_rejection(source, splits, threshold)
    baseline_label_N, baseline_prediction_N = _predict_with_rejection(baseline, splits, threshold)
    if not np.array_equal(label_N, baseline_label_N):
        raise UserError("--against: that model's split has other images")
    f1_C = class_f1(label_N, prediction_N, len(counts_C))
    baseline_f1_C = class_f1(baseline_label_N, baseline_prediction_N, len(counts_C))
    # Stable: classes of equal size stay in order.
    open_set = [] if threshold is None else [len(counts_C)]
    order_K = np.append(np.argsort(-counts_C, kind="stable"), open_set).astype(np.int64)
    class_K = np.append(np.arange(len(counts_C)), OPEN_LABEL)[order_K]
    return F1Gains(class_K, np.append(counts_C, 0)[order_K], f1_C[order_K], baseline_f1_C[order_K])


def _predict_with_rejection(
    source: FigureModel, splits: Iterable[str], threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, int64 [N] each; -1 for rejected images."""
    labels, predictions = [], []
    for name in splits:
        for batch in predict(source.predictor, find_split(source.data, name), ("label", "logits")):
            probability_N, class_N = batch.logit_NC.softmax(1).max(1)
            is_rejected_N = probability_N < (0 if threshold is None else threshold)
            predictions.append(class_N.masked_fill(is_rejected_N, OPEN_LABEL))
            labels.append(batch.label_N)
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()


_TOP_CONCEPTS = 3


@dataclass(frozen=True)
class NamedImage:
    """An image as decoded for evaluation, uint8 [H,W,3], and its name."""

    name: str
    image_HW3: np.ndarray


class NearestImage(NamedTuple):
    """The training image of a class whose feature is nearest to the class's centroid, and its distance."""

    image: NamedImage
    distance: float


@dataclass(frozen=True)
class Concept:
    """A class, the coefficient of its centroid in the memory feature, and its nearest image if it has any."""

    label: int
    name: str
    coefficient: float
    nearest: NearestImage | None


@dataclass(frozen=True)
class TopConcepts:
    """An image, its label (-1 in the open set) and class name, and its concepts by descending coefficient."""

    image: NamedImage
    label: int
    name: str
    concepts: tuple[Concept, ...]


def top_concepts(source: FigureModel, split: str, *, images: int, seed: int) -> list[TopConcepts]:
    """Returns the top concepts of a random sample of a split. Raises UserError for a model without memory feature."""
    method = source.model.method
    if not isinstance(method, DynamicMeta) or method.head.hallucinator is None:
        stage = source.model.card["stage"]
        raise UserError(f"concepts: stage {stage} has no memory; choose a stage of the method dynamic_meta")
    sample = _sample(find_split(source.data, split), images, np.random.default_rng(seed))
    rows = []
    for batch in predict(source.predictor, sample, ("label", "index", "image", "features")):
        with torch.no_grad():
            feature = GatheredFeatures.gather(batch.feature_ND.to(batch.image_nHW3.device))
            coefficient_NC = method.head.hallucinator(feature).full_BC.softmax(1)
        coefficient_NK, class_NK = coefficient_NC.topk(min(_TOP_CONCEPTS, coefficient_NC.shape[1]), dim=1)
        named_images, labels = _named_images(sample, batch), batch.label_N.tolist()
        rows += zip(named_images, labels, class_NK.tolist(), coefficient_NK.tolist(), strict=True)
    nearest = _nearest_images(source, {label for _, _, classes, _ in rows for label in classes})
    # Index -1 is the open set.
    names = [*source.model.config.data.class_names(source.data), "open set"]
    return [
        TopConcepts(
            image,
            label,
            names[label],
            tuple(
                Concept(concept, names[concept], coefficient, nearest.get(concept))
                for concept, coefficient in zip(classes, coefficients, strict=True)
            ),
        )
        for image, label, classes, coefficients in rows
    ]


def _nearest_images(source: FigureModel, classes: Iterable[int]) -> dict[int, NearestImage]:
    """Returns the nearest image of each class with training images; only images of these classes are read."""
    train = source.data.train_plain
    split = Split(train.dataset, train.members[np.isin(train.labels, list(classes))])
    centroid_CD = source.model.method.memory.centroid_CD.detach().cpu()
    nearest: dict[int, NearestImage] = {}
    for batch in predict(source.predictor, split, ("label", "index", "image", "features")):
        distance_N = torch.linalg.vector_norm(batch.feature_ND - centroid_CD[batch.label_N], dim=1)
        named_images = _named_images(split, batch)
        for label, distance, image in zip(batch.label_N.tolist(), distance_N.tolist(), named_images, strict=True):
            if label not in nearest or distance < nearest[label].distance:
                nearest[label] = NearestImage(image, distance)
    return nearest


def _named_images(split: Split, batch: Predictions) -> list[NamedImage]:
    names = [split.dataset.image_name(index) for index in batch.index_N.tolist()]
    return [NamedImage(*pair) for pair in zip(names, batch.image_nHW3.cpu().numpy(), strict=True)]
