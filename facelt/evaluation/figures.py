"""A trained model and the images a figure is of, and how these are gone through.

N images, B images of a batch.

Where images lie when their features are laid out in the plane by t-SNE (OLTR, Figure 3).

N images, C classes, D feature.

How much better each class is recognised by one model than by another (OLTR, Figure 6).

N images, C classes.

Which centroids of the memory an image calls up, and what these look like (OLTR, Figure 7).

B images of a batch, C classes, D feature, K concepts of an image, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.kind import Split, TrainingData
from facelt.distributed.logits import GatheredFeatures
from facelt.errors import UserError
from facelt.evaluation.evaluate import find_split
from facelt.inference.model import TrainedModel
from facelt.inference.predict import Predictions, Predictor, predict, predict_all
from facelt.methods.base import Method
from facelt.methods.oltr import DynamicMeta
from facelt.metrics.classification import OPEN_LABEL, class_f1, shot_bands


@dataclass(frozen=True)
class FigureModel:
    """A model, the data it was trained on, and how images are read for it."""

    model: TrainedModel
    data: TrainingData
    predictor: Predictor

    @classmethod
    def of(cls, model: TrainedModel, batch: int, workers: int) -> "FigureModel":
        """Opens the data the model's configuration names. Raises UserError."""
        return cls(model, model.config.data.open(model.config.seed), Predictor.of(model, batch, workers))

    @property
    def method(self) -> Method:
        return self.model.method

    def split(self, name: str) -> Split:
        """Images to evaluate on. Raises UserError where the data have no such split."""
        return find_split(self.data, name)

    def bands(self, convention: str) -> np.ndarray:
        """The band of each class as an index into `SHOT_BANDS`."""
        return shot_bands(self.data.train_counts, convention)


def _sample(split: Split, images: int, random: np.random.Generator) -> Split:
    """So many of the split's images, or all where there are fewer, in their order."""
    chosen = random.choice(len(split.members), min(images, len(split.members)), replace=False)
    return Split(split.dataset, split.members[np.sort(chosen)])


_MIN_IMAGES = 5
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class TsneLayout:
    """Names; labels, int64 [N], -1 in the open set; and places, float [N,2], without a unit."""

    names: tuple[str, ...]
    label_N: np.ndarray
    position_N2: np.ndarray


def embed_in_plane(source: FigureModel, split: str, *, kind: str, images: int, seed: int) -> TsneLayout:
    """t-SNE of `images` embeddings of a split and of the open set, where the data have one, each by its size.

    Equal seeds draw the same images and lay them out alike. Raises UserError: a kind that the method has not, or too
    few images.
    """
    source.model.require_kind(kind)
    splits = [source.split(split)]
    splits += [source.data.evaluation["open"]] if split != "open" and "open" in source.data.evaluation else []
    total = sum(len(one.members) for one in splits)
    random = np.random.default_rng(seed)
    chosen = [_sample(one, round(images * len(one.members) / max(total, images)), random) for one in splits]
    parts = [_embedded(source, one, kind) for one in chosen]
    names = tuple(name for names, _, _ in parts for name in names)
    if len(names) < _MIN_IMAGES:
        raise UserError(f"--images: t-SNE lays out {_MIN_IMAGES} images or more, and there are {len(names)}")
    feature_ND = np.concatenate([feature_ND for _, _, feature_ND in parts])
    return TsneLayout(names, np.concatenate([label_N for _, label_N, _ in parts]), _tsne(feature_ND, seed))


def _tsne(feature_ND: np.ndarray, seed: int) -> np.ndarray:
    """Places [N,2] by t-SNE, begun at the two main axes."""
    from sklearn.manifold import TSNE

    # A neighbourhood is no larger than a third of what is there.
    perplexity = min(_PERPLEXITY, (len(feature_ND) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(feature_ND)


def _embedded(source: FigureModel, split: Split, kind: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, labels [N] and embeddings [N,D] of the images that could be read."""
    result = predict_all(source.predictor, split, ("label", "index", kind))
    names = [split.dataset.image_name(index) for index in result.index_N.tolist()]
    return names, result.label_N.numpy(), result.embeddings[kind].numpy()


@dataclass(frozen=True)
class F1Gains:
    """Classes, the one of most training images first, and last -1 for the open set if that was asked for.

    `class_K` and `count_K` int64 [K]; F1 as fractions, float [K] each, NaN where a class was neither met nor named.
    """

    class_K: np.ndarray
    count_K: np.ndarray
    f1_K: np.ndarray
    other_f1_K: np.ndarray

    @property
    def gain_K(self) -> np.ndarray:
        return self.f1_K - self.other_f1_K


def f1_gains(source: FigureModel, other: FigureModel, split: str, threshold: float | None) -> F1Gains:
    """F1 of each class by both models on the same images.

    With a threshold, images whose largest probability is below it are rejected, and the images of the split `open`
    join as one more class, which is to be rejected. Raises UserError where the models know other classes or the images
    are not the same.
    """
    counts_C, other_counts_C = source.data.train_counts, other.data.train_counts
    if not np.array_equal(counts_C, other_counts_C):
        raise UserError("--against: that model was trained on other classes, or on other numbers of their images")
    open_set = threshold is not None
    answers = []
    for one in (source, other):
        parts = [_answers(one, one.split(name), threshold) for name in ((split, "open") if open_set else (split,))]
        answers.append(tuple(np.concatenate(column) for column in zip(*parts, strict=True)))
    (label_N, prediction_N), (other_label_N, other_prediction_N) = answers
    if not np.array_equal(label_N, other_label_N):
        raise UserError("--against: that model's images of the split are not the same ones")
    f1, other_f1 = (class_f1(label_N, answer_N, len(counts_C)) for answer_N in (prediction_N, other_prediction_N))
    # A stable sort keeps the data's order among classes of as many images; the open set follows them all.
    order_K = np.append(np.argsort(-counts_C, kind="stable"), [len(counts_C)] if open_set else []).astype(np.int64)
    class_K = np.append(np.arange(len(counts_C)), OPEN_LABEL)[order_K]
    return F1Gains(class_K, np.append(counts_C, 0)[order_K], f1[order_K], other_f1[order_K])


def _answers(source: FigureModel, split: Split, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions), int64 [N] each; -1 where the image is rejected."""
    labels, predictions = [], []
    for batch in predict(source.predictor, split, ("label", "logits")):
        probability_N, class_N = batch.logit_NC.softmax(1).max(1)
        rejected_N = probability_N < (0 if threshold is None else threshold)
        predictions.append(class_N.masked_fill(rejected_N, OPEN_LABEL))
        labels.append(batch.label_N)
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()


_TOP_CONCEPTS = 3


@dataclass(frozen=True)
class NamedImage:
    """An image by name, as it was decoded for evaluation, uint8 [H,W,3]."""

    name: str
    image_HW3: np.ndarray


class NearestImage(NamedTuple):
    """The training image of a class whose feature is nearest to the class's centroid, and how far it is."""

    picture: NamedImage
    distance: float


@dataclass(frozen=True)
class Concept:
    """A class, the coefficient of its centroid in what is read from the memory, and a picture; None without images."""

    label: int
    name: str
    coefficient: float
    nearest: NearestImage | None


@dataclass(frozen=True)
class TopConcepts:
    """An image, its label (-1 in the open set) and class, and its concepts, the strongest first."""

    picture: NamedImage
    label: int
    name: str
    concepts: tuple[Concept, ...]


def top_concepts(source: FigureModel, split: str, *, images: int, seed: int) -> list[TopConcepts]:
    """The strongest concepts of so many images of a split, drawn by the seed.

    Raises UserError where the model has no memory to read from.
    """
    if not isinstance(source.method, DynamicMeta) or source.method.head.hallucinator is None:
        stage = source.model.card["stage"]
        raise UserError(f"concepts: the stage {stage} reads from no memory; name one of the method dynamic_meta")
    chosen = _sample(source.split(split), images, np.random.default_rng(seed))
    fields = ("label", "index", "image", "features")
    found = [one for batch in predict(source.predictor, chosen, fields) for one in _strongest(source, chosen, batch)]
    nearest = nearest_images(source, {label for *_, strongest in found for label, _ in strongest})
    # The last name is that of the label -1.
    names = [*source.model.config.data.class_names(source.data), "open set"]
    return [
        TopConcepts(
            picture,
            label,
            names[label],
            tuple(Concept(one, names[one], share, nearest.get(one)) for one, share in strongest),
        )
        for picture, label, strongest in found
    ]


@torch.no_grad()
def _strongest(source: FigureModel, split: Split, batch: Predictions) -> list[tuple]:
    """(picture, label, [(class, coefficient), ...]) of each image of a batch."""
    feature = GatheredFeatures.gather(batch.feature_ND.to(batch.image_nHW3.device))
    coefficient_BC = source.method.head.hallucinator(feature).full_BC.softmax(1)
    share_BK, class_BK = coefficient_BC.topk(min(_TOP_CONCEPTS, coefficient_BC.shape[1]), dim=1)
    pairs = [list(zip(*row, strict=True)) for row in zip(class_BK.tolist(), share_BK.tolist(), strict=True)]
    return list(zip(_pictures(split, batch), batch.label_N.tolist(), pairs, strict=True))


def nearest_images(source: FigureModel, classes: Iterable[int]) -> dict[int, NearestImage]:
    """For each of the classes that has training images, the one nearest to the centroid.

    Only images of these classes are read.
    """
    train = source.data.train_plain
    members = train.members[np.isin(train.labels, list(classes))]
    centroid_CD = source.method.memory.centroid_CD.detach().cpu()
    nearest: dict[int, NearestImage] = {}
    fields = ("label", "index", "image", "features")
    for batch in predict(source.predictor, Split(train.dataset, members), fields):
        distance_N = torch.linalg.vector_norm(batch.feature_ND - centroid_CD[batch.label_N], dim=1)
        pictures = _pictures(train, batch)
        for label, distance, picture in zip(batch.label_N.tolist(), distance_N.tolist(), pictures, strict=True):
            if label not in nearest or distance < nearest[label].distance:
                nearest[label] = NearestImage(picture, distance)
    return nearest


def _pictures(split: Split, batch: Predictions) -> list[NamedImage]:
    names = [split.dataset.image_name(index) for index in batch.index_N.tolist()]
    return [NamedImage(*one) for one in zip(names, batch.image_nHW3.cpu().numpy(), strict=True)]
