"""From the data section of a configuration to datasets, members and image preparation.

N images, C identities.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from facelt.config import CifarData, DataConfig, ListData, RecordData
from facelt.data.augment import ShiftAndTurn
from facelt.data.batch import Batch
from facelt.data.cifar import long_tail, open_cifar
from facelt.data.cifar_download import download_cifar
from facelt.data.image_dataset import ImageDataset
from facelt.data.list_dataset import FolderDataset, ListDataset
from facelt.data.normalise import to_float
from facelt.data.record_dataset import RecordDataset
from facelt.data.split import split_train_validation
from facelt.data.transforms import CentreCrop, ExpectSize, Resize, TrainCrop
from facelt.engine.ranks import on_first_rank
from facelt.errors import UserError


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
class Preparation:
    """How uint8 images become network input, by `data`'s mean and std; `move` and `flip` change training images by
    their draws' seeds. On a GPU flips and normalisation are one kernel unless `data.fused` says otherwise.
    """

    data: DataConfig
    flip: bool = False
    move: ShiftAndTurn | None = None

    def for_training(self, batch: Batch) -> torch.Tensor:
        image_BHW3 = batch.image_BHW3 if self.move is None else self.move(batch.image_BHW3, batch.seed_B)
        return self._input(image_BHW3, batch.seed_B if self.flip else None)

    def for_evaluation(self, batch: Batch) -> torch.Tensor:
        return self._input(batch.image_BHW3, None)

    def _input(self, image_BHW3: torch.Tensor, seed_B: torch.Tensor | None) -> torch.Tensor:
        fused = self.data.fused and image_BHW3.is_cuda
        return to_float(image_BHW3, self.data.mean, self.data.std, seed_B, fused=fused)


@dataclass(frozen=True)
class TrainingData:
    """Everything a run reads: `train` as it is trained on, `train_plain` the same images without augmentation."""

    train: Split
    train_plain: Split
    evaluation: dict[str, Split]
    num_classes: int
    preparation: Preparation

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
    train, validation = split_train_validation(dataset.labels, config.validation_fraction, seed)
    split = Split(dataset, train)
    evaluation = {"validation": Split(dataset, validation)} if len(validation) else {}
    return TrainingData(split, split, evaluation, dataset.num_classes, Preparation(config, config.flip))


def _open_list(config: ListData) -> TrainingData:
    whole = partial(ListDataset, max_pixels=config.max_pixels)
    transform = TrainCrop(config.crop, jitter=config.jitter)
    train = whole(config.train, config.root, transform=transform, num_classes=config.num_classes)
    centre = partial(whole, transform=CentreCrop(config.crop, config.resize), num_classes=train.num_classes)
    plain = centre(config.train, config.root)
    roots = {"open": config.open_root or config.root}
    evaluation = {
        split: _every(centre(path, roots.get(split, config.root)))
        for split, path in config.lists.items()
        if split != "train"
    }
    refuse_mixed(config, {"train": train.labels, **{name: split.labels for name, split in evaluation.items()}})
    # The training crop mirrors in the worker already.
    return TrainingData(_every(train), _every(plain), evaluation, train.num_classes, Preparation(config))


def _open_cifar(config: CifarData) -> TrainingData:
    if config.download:
        on_first_rank(lambda: download_cifar(config.root, config.classes))
    train, test = (open_cifar(config.root, config.classes, split) for split in ("train", "test"))
    split = Split(train, long_tail(train, config.profile, config.imbalance))
    preparation = Preparation(config, config.flip, ShiftAndTurn(config.pad, config.rotation))
    return TrainingData(split, split, _cifar_evaluation(config, test), train.num_classes, preparation)


def _cifar_evaluation(config: CifarData, test: ImageDataset) -> dict[str, Split]:
    """The test set; where unknown images are named, they too, and of both the part that tuning may look at."""
    if config.open is None:
        return {"test": _every(test)}
    transform = Resize(config.image_size)
    unknown = FolderDataset(config.open, transform=transform, max_pixels=config.max_pixels, open_set=True)
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
