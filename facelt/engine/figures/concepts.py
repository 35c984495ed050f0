"""Which centroids of the memory an image calls up, and what these look like (OLTR, Figure 7).

B images of a batch, C classes, D feature, K concepts of an image, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.batch import Batch
from facelt.engine.class_names import class_names
from facelt.engine.data import Split
from facelt.engine.figures.source import Source, drawn
from facelt.errors import UserError
from facelt.methods.dynamic_meta import DynamicMeta
from facelt.parallel import SharedFeature

TOP = 3


@dataclass(frozen=True)
class Picture:
    """An image by name, as it was decoded for evaluation, uint8 [H,W,3]."""

    name: str
    image_HW3: np.ndarray


class Nearest(NamedTuple):
    """The training image of a class whose feature is nearest to the class's centroid, and how far it is."""

    picture: Picture
    distance: float


@dataclass(frozen=True)
class Concept:
    """A class, the coefficient of its centroid in what is read from the memory, and a picture; None without images."""

    label: int
    name: str
    coefficient: float
    nearest: Nearest | None


@dataclass(frozen=True)
class Called:
    """An image, its label (-1 in the open set) and class, and its concepts, the strongest first."""

    picture: Picture
    label: int
    name: str
    concepts: tuple[Concept, ...]


def called_concepts(source: Source, split: str, *, images: int, seed: int) -> list[Called]:
    """The strongest concepts of so many images of a split, drawn by the seed.

    Raises UserError where the model has no memory to read from.
    """
    if not isinstance(source.method, DynamicMeta) or source.method.head.hallucinator is None:
        stage = source.model.card["stage"]
        raise UserError(f"concepts: the stage {stage} reads from no memory; name one of the method dynamic_meta")
    chosen = drawn(source.split(split), images, np.random.default_rng(seed))
    found = [one for batch, inputs in source.batches(chosen) for one in _strongest(source, chosen, batch, inputs)]
    nearest = nearest_images(source, {label for *_, strongest in found for label, _ in strongest})
    # The last name is that of the label -1.
    names = [*class_names(source.data, source.model.config.data), "open set"]
    return [
        Called(
            picture,
            label,
            names[label],
            tuple(Concept(one, names[one], share, nearest.get(one)) for one, share in strongest),
        )
        for picture, label, strongest in found
    ]


@torch.no_grad()
def _strongest(source: Source, split: Split, batch: Batch, image_B3HW: torch.Tensor) -> list[tuple]:
    """(picture, label, [(class, coefficient), ...]) of each image of a batch."""
    feature = SharedFeature.of(source.method.features(image_B3HW))
    coefficient_BC = source.method.head.hallucinator(feature).whole_BC.softmax(1)
    share_BK, class_BK = coefficient_BC.topk(min(TOP, coefficient_BC.shape[1]), dim=1)
    pairs = [list(zip(*row, strict=True)) for row in zip(class_BK.tolist(), share_BK.tolist(), strict=True)]
    return list(zip(_pictures(split, batch), batch.label_B.tolist(), pairs, strict=True))


@torch.no_grad()
def nearest_images(source: Source, classes: Iterable[int]) -> dict[int, Nearest]:
    """For each of the classes that has training images, the one nearest to the centroid.

    Only images of these classes are read.
    """
    train = source.data.train_plain
    members = train.members[np.isin(train.labels, list(classes))]
    centroid_CD = source.method.memory.centroid_CD.detach()
    nearest: dict[int, Nearest] = {}
    for batch, image_B3HW in source.batches(Split(train.dataset, members)):
        distance_B = torch.linalg.vector_norm(source.method.features(image_B3HW) - centroid_CD[batch.label_B], dim=1)
        pictures = _pictures(train, batch)
        for label, distance, picture in zip(batch.label_B.tolist(), distance_B.tolist(), pictures, strict=True):
            if label not in nearest or distance < nearest[label].distance:
                nearest[label] = Nearest(picture, distance)
    return nearest


def _pictures(split: Split, batch: Batch) -> list[Picture]:
    names = [split.dataset.names(index) for index in batch.index_B.tolist()]
    return [Picture(*one) for one in zip(names, batch.image_BHW3.cpu().numpy(), strict=True)]
