"""From the data section of a configuration to datasets, members and image preparation.

N images, C identities.

Which label of the data each class of a model stands for.

C classes.

What the data of a recipe are made of, from lists and labels alone.

Shapes: N images of a split.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from facelt.config.data import CifarData, DataConfig, ListData, RecordData
from facelt.config.train import TrainConfig
from facelt.data.batch import Batch
from facelt.data.cifar import download_cifar, long_tailed_members, open_cifar
from facelt.data.dataset import ImageDataset
from facelt.data.lists import ImageFolderDataset, ListDataset
from facelt.data.records import RecordDataset, read_manifest
from facelt.data.samplers import train_validation_split
from facelt.data.transforms import CenterCrop, ExpectSize, PadCropRotate, RandomCropJitter, Resize, normalise_images
from facelt.distributed.launch import run_on_rank0
from facelt.errors import UserError
from facelt.metrics.classification import split_stats
from recordio_tools.lists import read_labelled_list


@dataclass(frozen=True)
class Split:
    """Some images of a dataset: which of its indices belong."""

    dataset: ImageDataset
    members: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels of the members, int64 [N]."""
        return self.dataset.labels[self.members]


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 images become network input, by `data`'s mean and std; `move` and `flip` change training images by
    their draws' seeds. On a GPU flips and normalisation are one kernel unless `data.fused` says otherwise.
    """

    data: DataConfig
    flip: bool = False
    move: PadCropRotate | None = None

    def for_training(self, batch: Batch) -> torch.Tensor:
        image_BHW3 = batch.image_BHW3 if self.move is None else self.move(batch.image_BHW3, batch.seed_B)
        return self._input(image_BHW3, batch.seed_B if self.flip else None)

    def for_evaluation(self, batch: Batch) -> torch.Tensor:
        return self._input(batch.image_BHW3, None)

    def _input(self, image_BHW3: torch.Tensor, seed_B: torch.Tensor | None) -> torch.Tensor:
        fused = self.data.fused and image_BHW3.is_cuda
        return normalise_images(image_BHW3, self.data.mean, self.data.std, seed_B, fused=fused)


@dataclass(frozen=True)
class TrainingData:
    """Everything a run reads: `train` as it is trained on, `train_plain` the same images without augmentation."""

    train: Split
    train_plain: Split
    evaluation: dict[str, Split]
    num_classes: int
    preprocessing: Preprocessing

    @property
    def train_counts(self) -> np.ndarray:
        """Training images of each identity, int64 [C]."""
        return np.bincount(self.train.labels, minlength=self.num_classes)

    def fingerprint(self) -> str:
        """A hash of which images with which labels are trained on."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train.members, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.train.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


def open_data(config: DataConfig, seed: int) -> TrainingData:
    """Opens what the configuration names. Raises UserError naming the file or the record at fault."""
    match config:
        case RecordData():
            return _open_record(config, seed)
        case ListData():
            return _open_list(config)
        case CifarData():
            return _open_cifar(config)


def _open_record(config: RecordData, seed: int) -> TrainingData:
    dataset = RecordDataset(
        config.train,
        manifest=config.manifest,
        transform=ExpectSize(config.image_size),
        max_pixels=config.max_pixels,
    )
    train, validation = train_validation_split(dataset.labels, config.validation_fraction, seed)
    split = Split(dataset, train)
    evaluation = {"validation": Split(dataset, validation)} if len(validation) else {}
    return TrainingData(split, split, evaluation, dataset.num_classes, Preprocessing(config, config.flip))


def _open_list(config: ListData) -> TrainingData:
    whole = partial(ListDataset, max_pixels=config.max_pixels)
    transform = RandomCropJitter(config.crop, jitter=config.jitter)
    train = whole(config.train, config.root, transform=transform, num_classes=config.num_classes)
    centre = partial(whole, transform=CenterCrop(config.crop, config.resize), num_classes=train.num_classes)
    plain = centre(config.train, config.root)
    roots = {"open": config.open_root or config.root}
    evaluation = {
        split: _every(centre(path, roots.get(split, config.root)))
        for split, path in config.lists.items()
        if split != "train"
    }
    refuse_mixed(config, {"train": train.labels, **{name: split.labels for name, split in evaluation.items()}})
    # The training crop mirrors in the worker already.
    return TrainingData(_every(train), _every(plain), evaluation, train.num_classes, Preprocessing(config))


def _open_cifar(config: CifarData) -> TrainingData:
    if config.download:
        run_on_rank0(lambda: download_cifar(config.root, config.classes))
    train, test = (open_cifar(config.root, config.classes, split) for split in ("train", "test"))
    split = Split(train, long_tailed_members(train, config.profile, config.imbalance))
    preprocessing = Preprocessing(config, config.flip, PadCropRotate(config.pad, config.rotation))
    return TrainingData(split, split, _cifar_evaluation(config, test), train.num_classes, preprocessing)


def _cifar_evaluation(config: CifarData, test: ImageDataset) -> dict[str, Split]:
    """The test set; where unknown images are named, they too, and of both the part that tuning may look at."""
    if config.open is None:
        return {"test": _every(test)}
    transform = Resize(config.image_size)
    unknown = ImageFolderDataset(config.open, transform=transform, max_pixels=config.max_pixels, open_set=True)
    if config.tuning >= min(len(test), len(unknown)):
        raise UserError(
            f"data.tuning: {config.tuning} of {len(test)} test images and {len(unknown)} in {config.open} leave none; "
            "lower it, 0 sets none apart"
        )
    splits = {}
    for name, dataset in (("test", test), ("open", unknown)):
        splits[name] = Split(dataset, np.arange(config.tuning, len(dataset)))
        if config.tuning:
            splits[f"{name}_tuning"] = Split(dataset, np.arange(config.tuning))
    return splits


def refuse_mixed(config: ListData, labels: dict[str, np.ndarray]) -> None:
    """Raises UserError where training has open-set images (label -1), or the open set others; `labels` by split."""
    if (labels["train"] < 0).any():
        raise UserError(f"{config.train}: a training list cannot hold open-set images (label -1)")
    if (known_N := labels.get("open", labels["train"][:0]) >= 0).any():
        label = labels["open"][np.argmax(known_N)]
        raise UserError(f"{config.open}: a list of the open set gives every image the label -1, not {label}")


def _every(dataset: ImageDataset) -> Split:
    return Split(dataset, np.arange(len(dataset)))


OWN = "a class is the label of the same number in the data, which has no other names"
SELECTED = "a class is the label below at its place, as the manifest renames it; -1 where it has no image"


@dataclass(frozen=True)
class ClassMap:
    """`label_C`: labels as the data itself has them, int64 [C], and in words what they are."""

    label_C: np.ndarray
    meaning: str

    @classmethod
    def of(cls, config: DataConfig, num_classes: int) -> "ClassMap":
        """Records selected by a manifest have new labels; all other data keeps its own. Raises UserError."""
        if not isinstance(config, RecordData) or config.manifest is None:
            return cls(np.arange(num_classes), OWN)
        rows = read_manifest(config.manifest)
        label_C = np.full(num_classes, -1, dtype=np.int64)
        label_C[rows.new_label_M] = rows.label_M
        return cls(label_C, SELECTED)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.label_C, dtype="<i8").tobytes()).hexdigest()

    def card(self) -> dict[str, Any]:
        """What a card says of it; the labels are left out where they are the classes."""
        labels = {} if self.meaning == OWN else {"labels": self.label_C.tolist()}
        return {"meaning": self.meaning, "sha256": self.sha256, **labels}


def dataset_stats(config: TrainConfig) -> dict:
    """Classes, and the composition of every split. The images of lists need not be there.

    Raises UserError naming the file at fault.
    """
    classes, labels = _labels(config)
    counts_C = np.bincount(labels["train"], minlength=classes)
    splits = {split: split_stats(counts_C, label_N) for split, label_N in labels.items()}
    return {"kind": config.data.kind, "classes": classes, "splits": splits}


def _labels(config: TrainConfig) -> tuple[int, dict[str, np.ndarray]]:
    """The number of classes and the labels of every split, int64 [N] each."""
    if isinstance(config.data, ListData):
        _, train_N = read_labelled_list(config.data.train, config.data.num_classes)
        classes = config.data.num_classes or int(train_N.max()) + 1
        others = {
            split: read_labelled_list(path, classes)[1] for split, path in config.data.lists.items() if split != "train"
        }
        labels = {"train": train_N, **others}
        refuse_mixed(config.data, labels)
        return classes, labels
    data = open_data(config.data, config.seed)
    evaluation = {name: split.labels for name, split in data.evaluation.items()}
    return data.num_classes, {"train": data.train.labels, **evaluation}
