"""List data: image files named by a list (`path label` lines) or found in a folder, in the layouts of published sets.

N images of the dataset.
"""

import os
import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from facelt.config.base import ImageSide
from facelt.config.registry import register_data_kind
from facelt.data.dataset import EncodedImageDataset
from facelt.data.decode import BadImageError
from facelt.data.kind import Channels, DataKind, Split, TrainingData
from facelt.data.transforms import CenterCrop, ImageTransform, RandomCropJitter
from facelt.errors import UserError
from recordio_tools.bounded_io import read_regular_file
from recordio_tools.image_header import DEFAULT_MAX_PIXELS
from recordio_tools.lists import IMAGE_SUFFIXES, read_labelled_list, read_path_list

_MAX_IMAGE_BYTES = 1 << 29
_JitterStrength = Annotated[float, Field(ge=0)]
_HueShift = Annotated[float, Field(ge=0, le=0.5)]


@register_data_kind("list")
class ListData(DataKind):
    """Lists of `path label` lines below the folder `root`, as published for ImageNet-LT, Places-LT and others.

    `train`, `validation` and `test` are lists; `num_classes` is by default the largest training label + 1.
    Training takes a random crop of `crop` pixels a side, mirrored or not, with colour jitter up to `jitter`
    (brightness, contrast, saturation, hue). Evaluation resizes the shorter side to `resize` and crops the centre.
    `open_set` lists images of classes not in training (label -1), below `open_set_root`, or else `root`.
    """

    root: Path
    train: Path
    validation: Path | None = None
    test: Path | None = None
    open_set: Path | None = None
    open_set_root: Path | None = None
    crop: ImageSide = 224
    resize: ImageSide = 256
    jitter: tuple[_JitterStrength, _JitterStrength, _JitterStrength, _HueShift] = (0.4, 0.4, 0.4, 0.0)
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    num_classes: int | None = Field(None, ge=1)

    @field_validator("cache_on_device")
    @classmethod
    def _cannot_be_cached(cls, cache_on_device: bool) -> bool:
        if cache_on_device:
            raise ValueError("list data crops training images at random and cannot cache them; set it to false")
        return cache_on_device

    @property
    def image_size(self) -> tuple[int, int]:
        return self.crop, self.crop

    @property
    def training_file(self) -> str:
        return self.train.name

    def open(self, seed: int) -> TrainingData:
        dataset = partial(ListDataset, max_pixels=self.max_pixels)
        train = dataset(
            self.train, self.root, transform=RandomCropJitter(self.crop, self.jitter), num_classes=self.num_classes
        )
        plain = partial(dataset, transform=self.eval_transform(), num_classes=train.num_classes)
        roots = {"open": self.open_set_root or self.root}
        evaluation = {
            name: Split.whole(plain(path, roots.get(name, self.root))) for name, path in self._evaluation_lists.items()
        }
        self._check_labels({"train": train.labels, **{name: split.labels for name, split in evaluation.items()}})
        # The training crop mirrors in the worker already.
        train_plain = Split.whole(plain(self.train, self.root))
        return TrainingData(Split.whole(train), train_plain, evaluation, train.num_classes, self.preprocessing())

    def eval_transform(self) -> ImageTransform:
        return CenterCrop(self.crop, self.resize)

    def known_class_names(self, data: TrainingData) -> dict[int, str]:
        """Returns the folder of each class whose training images lie in a single one, below what all folders share."""
        dataset = data.train.dataset
        folders: dict[int, set[str]] = {}
        for label, folder in zip(dataset.labels.tolist(), folder_names(dataset.paths), strict=True):
            folders.setdefault(label, set()).add(folder)
        return {label: next(iter(names)) for label, names in folders.items() if len(names) == 1}

    def split_labels(self, seed: int) -> tuple[int, dict[str, np.ndarray]]:
        """Reads the lists alone; the images need not exist."""
        _, train_N = read_labelled_list(self.train, self.num_classes)
        num_classes = self.num_classes or int(train_N.max()) + 1
        evaluation = {name: read_labelled_list(path, num_classes)[1] for name, path in self._evaluation_lists.items()}
        label_N_by_split = {"train": train_N, **evaluation}
        self._check_labels(label_N_by_split)
        return num_classes, label_N_by_split

    @property
    def _evaluation_lists(self) -> dict[str, Path]:
        lists = {"validation": self.validation, "test": self.test, "open": self.open_set}
        return {name: path for name, path in lists.items() if path is not None}

    def _check_labels(self, label_N_by_split: dict[str, np.ndarray]) -> None:
        """Raises UserError if training has open-set images (label -1), or the open set others."""
        train_N = label_N_by_split["train"]
        if (train_N < 0).any():
            raise UserError(f"{self.train}: a training list cannot contain open-set images (label -1)")
        open_N = label_N_by_split.get("open", train_N[:0])
        if (open_N >= 0).any():
            label = open_N[np.argmax(open_N >= 0)]
            raise UserError(f"{self.open_set}: every image of an open-set list has the label -1, not {label}")


def folder_names(paths: Sequence[str]) -> list[str]:
    """Returns the folder of each relative path, below what all of them share; empty if they all lie in one."""
    folders = [posixpath.dirname(path) for path in paths]
    shared = posixpath.commonpath(set(folders)) if folders else ""
    return [folder[len(shared) :].lstrip("/") for folder in folders]


class ImageFileDataset(EncodedImageDataset):
    """Image files below `root`, named by their relative paths; a file that cannot be read is a bad image.

    `layout` names the rule that turns a listed path into the path to open. `is_labelled` if the labels
    come from a list.
    """

    is_labelled = False

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: np.ndarray,
        num_classes: int,
        transform: ImageTransform,
        max_pixels: int,
        layout: str = "as listed",
    ) -> None:
        super().__init__(labels, num_classes, transform, max_pixels)
        self.root = Path(root)
        self.paths = paths
        self.layout = layout

    def image_name(self, index: int) -> str:
        return self.paths[index]

    def read_encoded(self, index: int) -> bytes:
        path = _LAYOUTS[self.layout](self.paths[index])
        if path is None:
            raise BadImageError(f"the path does not fit the layout {self.layout} of the other files of the list")
        try:
            return read_regular_file(self.root / path, _MAX_IMAGE_BYTES)
        except OSError as error:
            raise BadImageError(f"cannot read {self.root / path}: {error.strerror}") from error


class ListDataset(ImageFileDataset):
    """Images of a list: relative path, one space, label on each line; -1 marks the open set.

    `num_classes` None takes the largest label + 1. The layout of the files is detected once by looking for a few of
    them; whether each file exists is checked when it is read. Links inside `root` are followed, since image trees are
    often assembled from them.

    Raises UserError: a malformed list, or none of the probed files exists.
    """

    is_labelled = True

    def __init__(
        self,
        list_path: Path,
        root: Path,
        *,
        transform: ImageTransform,
        num_classes: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if self.is_labelled:
            paths, labels = read_labelled_list(list_path, num_classes)
        else:
            paths = read_path_list(list_path)
            labels = np.full(len(paths), -1, dtype=np.int64)
        layout = find_layout(Path(root), paths)
        if layout is None:
            raise UserError(
                f"{list_path}, line 1: {Path(root) / paths[0]} does not exist, nor do other listed files in any known "
                "layout; check the root folder"
            )
        if num_classes is None:
            num_classes = int(labels.max()) + 1
        super().__init__(root, paths, labels, num_classes, transform, max_pixels, layout)


class UnlabelledListDataset(ListDataset):
    """Images of a list without labels, one relative path a line, for embedding."""

    is_labelled = False


class ImageFolderDataset(ImageFileDataset):
    """All image files below `root`, sorted by relative path, which is the image's name.

    The first folder of a path is the identity; labels are its position in `identities`. An image in `root` itself has
    the label -1, so a flat folder is a set without labels, and so has every image if `open_set`. Linked folders are not
    entered.

    Raises UserError: no such folder, or no image in it.
    """

    def __init__(
        self,
        root: Path,
        *,
        transform: ImageTransform,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        open_set: bool = False,
    ) -> None:
        if not Path(root).is_dir():
            raise UserError(f"{root}: the folder does not exist")
        paths = sorted(
            Path(folder, name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        )
        if not paths:
            raise UserError(f"{root}: the folder contains no image ({', '.join(IMAGE_SUFFIXES)})")
        first = [path.partition("/")[0] if "/" in path and not open_set else "" for path in paths]
        self.identities, labels = np.unique(first, return_inverse=True)
        if self.identities[0] == "":
            self.identities, labels = self.identities[1:], labels - 1
        super().__init__(root, paths, labels.astype(np.int64), len(self.identities), transform, max_pixels)


_Layout = Callable[[str], str | None]
"""Listed relative path -> relative path to open; None if the rule does not apply."""

_PROBES = 16


def _as_listed(path: str) -> str:
    return path


def _scene(path: str) -> tuple[str, str] | None:
    """(scene/kind, file name) of data_256/<letter>/<scene>[/<kind>]/<file>."""
    parts = path.split("/")
    return ("/".join(parts[2:-1]), parts[-1]) if parts[0] == "data_256" and len(parts) >= 4 else None


def _train_hyphen(path: str) -> str | None:
    scene = _scene(path)
    return scene and f"train/{scene[0].replace('/', '-')}/{scene[1]}"


def _train_folders(path: str) -> str | None:
    scene = _scene(path)
    return scene and f"train/{scene[0]}/{scene[1]}"


def _data_256(path: str) -> str | None:
    parts = path.split("/")
    scene = "/".join(parts[1:-1]).replace("-", "/")
    return f"data_256/{scene[0]}/{scene}/{parts[-1]}" if parts[0] == "train" and scene else None


def _val_flat(path: str) -> str | None:
    parts = path.split("/")
    return f"val/{parts[-1]}" if parts[0] == "val" and len(parts) == 3 else None


_LAYOUTS: dict[str, _Layout] = {
    "as listed": _as_listed,
    "train/<scene>-<kind>": _train_hyphen,
    "train/<scene>/<kind>": _train_folders,
    "data_256/<letter>/<scene>/<kind>": _data_256,
    "val/<file>": _val_flat,
}
"""Layouts of published data sets by name.

Lists of Places-LT name `data_256/<letter>/<scene>/x.jpg`; copies of the data may have `train/<scene>/x.jpg`, where a
scene with a kind (apartment_building/outdoor) is one folder with a hyphen or two folders. Lists of ImageNet's
validation images name `val/<wnid>/x.JPEG`; the published archive has them in one folder.
"""


def find_layout(root: Path, paths: Sequence[str]) -> str | None:
    """Returns the layout in which most of a few sampled paths exist, the first of several; None if none exists."""
    probes = [paths[len(paths) * i // _PROBES] for i in range(_PROBES)] if len(paths) > _PROBES else list(paths)
    counts = {
        name: sum((mapped := layout(path)) is not None and (root / mapped).is_file() for path in probes)
        for name, layout in _LAYOUTS.items()
    }
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None
