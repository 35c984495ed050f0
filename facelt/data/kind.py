"""Base of the kinds of data: shared settings, splits for training and evaluation, class map, dataset statistics.

N images of a split, C classes.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from facelt.config.base import StrictModel
from facelt.data.dataset import ImageDataset
from facelt.data.transforms import ImageTransform, PadCropRotate, Preprocessing
from facelt.metrics.classification import split_stats
from recordio_tools.image_header import DEFAULT_MAX_PIXELS

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """Some images of a dataset, given by their dataset indices."""

    dataset: ImageDataset
    members: np.ndarray

    @classmethod
    def whole(cls, dataset: ImageDataset) -> "Split":
        """Returns the split of all images of a dataset."""
        return cls(dataset, np.arange(len(dataset)))

    def with_transform(self, transform: ImageTransform) -> "Split":
        """Returns the same images under another transform."""
        return Split(self.dataset.with_transform(transform), self.members)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the members, int64 [N]."""
        return self.dataset.labels[self.members]


@dataclass(frozen=True)
class TrainingData:
    """All splits of a run: `train` with augmentation, `train_plain` the same images without, and those to evaluate."""

    train: Split
    train_plain: Split
    evaluation: dict[str, Split]
    num_classes: int
    preprocessing: Preprocessing

    @property
    def train_counts(self) -> np.ndarray:
        """Training images of each class, int64 [C]."""
        return np.bincount(self.train.labels, minlength=self.num_classes)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the indices and labels of the training images."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train.members, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.train.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


_SAME_LABELS = "class c is label c of the data"
RELABELLED = "class c is label labels[c] of the record, relabelled by the manifest; -1 if it has no image"


@dataclass(frozen=True)
class ClassMap:
    """The label in the data of each class of a model, int64 [C], and a sentence on their meaning."""

    label_C: np.ndarray
    meaning: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.label_C, dtype="<i8").tobytes()).hexdigest()

    def card(self) -> dict[str, Any]:
        """Returns the entry of a model card; the labels are left out if they are the classes."""
        labels = {} if self.meaning == _SAME_LABELS else {"labels": self.label_C.tolist()}
        return {"meaning": self.meaning, "sha256": self.sha256, **labels}


class DataKind(StrictModel, ABC):
    """Settings of a kind of data, which open it. A subclass registers itself with `register_data_kind`.

    `mean` and `std` are in RGB order, as fractions of the full range (white is 1). `fused` compiles flips and
    normalisation to one kernel on GPUs, which needs Triton; CPUs ignore it. `cache_on_device` decodes the training
    images once, at the start of each stage, and keeps them on the device. An epoch leaves out the images that do not
    fill a last batch; with `drop_last: false` they are one step more. `workers` is the number of processes that
    decode images, 0 for none but the training process. An image that cannot be decoded, or has more than `max_pixels`
    by its header, is bad; up to `max_bad_images` of them are left out, and one more stops the run.

    Subclasses have `image_size`, the (height, width) of the network's input. Those with a key `augment` change images
    where they are decoded, and so cannot cache them.
    """

    kind: str
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    workers: int = Field(2, ge=0)
    max_bad_images: int = Field(0, ge=0)
    max_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1)
    fused: bool = True
    cache_on_device: bool = False
    drop_last: bool = True

    @model_validator(mode="after")
    def _caches_no_augmented_images(self) -> Self:
        if self.cache_on_device and getattr(self, "augment", None) is not None:
            raise ValueError("cache_on_device: augmented images are not cached; set it to false, or remove augment")
        return self

    @abstractmethod
    def open(self, seed: int) -> TrainingData:
        """Opens all splits. Raises UserError naming the file or the record at fault."""

    @property
    @abstractmethod
    def training_file(self) -> str:
        """The name of the file that holds or lists the training images. Raises UserError if there is none."""

    @abstractmethod
    def eval_transform(self) -> ImageTransform:
        """Returns the transform of images that a trained model is evaluated on."""

    @abstractmethod
    def known_class_names(self, data: TrainingData) -> dict[int, str]:
        """Returns the names of those classes that have one. Raises UserError if a file of names cannot be read."""

    def class_names(self, data: TrainingData) -> list[str]:
        """Returns a name for each class [C]: its number if it has no other. Raises UserError."""
        names = self.known_class_names(data)
        return [names.get(label) or str(label) for label in range(data.num_classes)]

    def class_map(self, num_classes: int) -> ClassMap:
        """Returns the label in the data of each class. Raises UserError."""
        return ClassMap(np.arange(num_classes), _SAME_LABELS)

    def preprocessing(self, *, flip: bool = False, augment: PadCropRotate | None = None) -> Preprocessing:
        """Returns the preprocessing of batches on the device."""
        return Preprocessing(self.mean, self.std, self.fused, flip, augment)

    def split_labels(self, seed: int) -> tuple[int, dict[str, np.ndarray]]:
        """Returns the number of classes, and the labels of every split, int64 [N] each. Raises UserError."""
        data = self.open(seed)
        evaluation = {name: split.labels for name, split in data.evaluation.items()}
        return data.num_classes, {"train": data.train.labels, **evaluation}


def dataset_stats(data: DataKind, seed: int) -> dict:
    """Returns the number of classes, and image and class counts of every split. No image is decoded.

    Raises UserError naming the file at fault.
    """
    num_classes, label_N_by_split = data.split_labels(seed)
    counts_C = np.bincount(label_N_by_split["train"], minlength=num_classes)
    splits = {name: split_stats(counts_C, label_N) for name, label_N in label_N_by_split.items()}
    return {"kind": data.kind, "classes": num_classes, "splits": splits}
