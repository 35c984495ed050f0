"""CIFAR data: CIFAR-10 and CIFAR-100, whole or long-tailed, from torchvision's files or records, and the download.

N images of a file, C classes, K images kept.
"""

import tarfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from facelt.config.registry import register_data_kind
from facelt.data.dataset import ImageDataset
from facelt.data.image_files import ImageFolderDataset
from facelt.data.kind import Channels, DataKind, Split, TrainingData
from facelt.data.policies import PolicyAugmentation, PolicySettings
from facelt.data.records import RecordDataset
from facelt.data.restricted_pickle import PickledArray, read_restricted_pickle
from facelt.data.transforms import ExpectSize, ImageTransform, PadCropRotate, Resize
from facelt.distributed.launch import run_on_rank0
from facelt.errors import UserError
from recordio_tools.bounded_io import read_utf8
from recordio_tools.long_tail import exponential_counts, step_counts

_SIDE = 32
_MAX_NAMES_BYTES = 1 << 20


@register_data_kind("cifar")
class CifarData(DataKind):
    """CIFAR-10 or CIFAR-100 by `classes`, long-tailed: `root` holds torchvision's files, or a train.rec and a test.rec.

    `download` fetches torchvision's files if they are absent. `imbalance` is the size of the largest class over the
    smallest, 1 for the balanced set; `profile: step` keeps 1/`imbalance` of the second half of the classes.
    Training images are padded by `pad` black pixels and cropped, rotated by up to `rotation` degrees and, with
    `flip`, mirrored, on the device. `augment` then changes them further; all of it is done by the workers in that case,
    and no image can be cached. `open_set` is a folder of images of classes not in training, resized to CIFAR's
    size; the first `tuning` images of it and of the test set then become separate splits.
    """

    root: Path
    classes: Literal[10, 100] = 100
    imbalance: float = Field(100, ge=1)
    profile: Literal["exponential", "step"] = "exponential"
    download: bool = False
    open_set: Path | None = None
    tuning: int = Field(1000, ge=0)
    pad: int = Field(4, ge=0, le=32)
    rotation: float = Field(0, ge=0, le=180)
    flip: bool = True
    augment: PolicySettings | None = None
    mean: Channels = (0.4914, 0.4822, 0.4465)
    std: Channels = (0.2023, 0.1994, 0.2010)
    workers: int = Field(0, ge=0)
    cache_on_device: bool = True

    @property
    def image_size(self) -> tuple[int, int]:
        return _SIDE, _SIDE

    @property
    def training_file(self) -> str:
        """The record, or torchvision's files below `root`."""
        if _record_of(self.root, "train").is_file():
            return _record_of(self.root, "train").name
        files = CIFAR_FILES[self.classes]
        return f"{files.folder}/{' to '.join(dict.fromkeys((files.train[0], files.train[-1])))}"

    def open(self, seed: int) -> TrainingData:
        if self.download:
            run_on_rank0(lambda: download_cifar(self.root, self.classes))
        dataset, test = (open_cifar(self.root, self.classes, split) for split in ("train", "test"))
        train = train_plain = Split(dataset, long_tailed_members(dataset, self.profile, self.imbalance))
        crop = PadCropRotate(self.pad, self.rotation)
        if self.augment is None:
            preprocessing = self.preprocessing(flip=self.flip, augment=crop)
        else:
            augmentation = PolicyAugmentation(self.augment, self.eval_transform(), crop, self.flip, self.mean)
            train = train_plain.with_transform(augmentation)
            preprocessing = self.preprocessing()
        return TrainingData(train, train_plain, self._evaluation_splits(test), dataset.num_classes, preprocessing)

    def eval_transform(self) -> ImageTransform:
        return ExpectSize(self.image_size)

    def known_class_names(self, data: TrainingData) -> dict[int, str]:
        """Returns the lines of classes.txt in `root`."""
        path = self.root / "classes.txt"
        if not path.exists():
            return {}
        try:
            return dict(enumerate(read_utf8(path, _MAX_NAMES_BYTES).splitlines()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error

    def _evaluation_splits(self, test: ImageDataset) -> dict[str, Split]:
        """Returns the test set; and with an open set, that too, and the tuning part of both."""
        if self.open_set is None:
            return {"test": Split.whole(test)}
        unknown = ImageFolderDataset(
            self.open_set, transform=Resize(self.image_size), max_pixels=self.max_pixels, open_set=True
        )
        if self.tuning >= min(len(test), len(unknown)):
            raise UserError(
                f"data.tuning: {self.tuning} of {len(test)} test images and {len(unknown)} in {self.open_set} leave "
                "none to test; lower it, or set it to 0 for no tuning splits"
            )
        splits = {}
        for name, dataset in (("test", test), ("open", unknown)):
            splits[name] = Split(dataset, np.arange(self.tuning, len(dataset)))
            if self.tuning:
                splits[f"{name}_tuning"] = Split(dataset, np.arange(self.tuning))
        return splits


class _CifarFiles(NamedTuple):
    """Layout of one of the two sets in torchvision: its folder, the files of both splits, and the key of the labels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_key: str


CIFAR_FILES = {
    10: _CifarFiles("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "labels"),
    100: _CifarFiles("cifar-100-python", ("train",), ("test",), "fine_labels"),
}


def read_cifar_file(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads (images uint8 [N,32,32,3], labels int64 [N]) from one file of torchvision.

    Raises UserError: a missing file, content other than plain values and one array of bytes, labels outside
    0..num_classes - 1, or image and label counts that differ.
    """
    values = read_restricted_pickle(path, what="CIFAR file", encoding="latin1")
    values = values if isinstance(values, dict) else {}
    pixels, labels = values.get("data"), values.get(label_key)
    if not isinstance(pixels, PickledArray) or pixels.value.size % (3 * _SIDE**2):
        raise UserError(f"{path}: not a CIFAR file (data is not an array of images); download it again")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise UserError(f"{path}: not a CIFAR file ({label_key} is not a list of numbers); download it again")
    if not all(0 <= label < num_classes for label in labels):
        raise UserError(f"{path}: labels outside 0..{num_classes - 1}; download it again")
    image_N3HW = pixels.value.reshape(-1, 3, _SIDE, _SIDE)
    if len(labels) != len(image_N3HW):
        raise UserError(f"{path}: {len(image_N3HW)} images but {len(labels)} labels; download it again")
    return np.ascontiguousarray(image_N3HW.transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64)


PROFILES = {"exponential": exponential_counts, "step": step_counts}
"""Profile -> function (num_classes, imbalance, images of the largest class) -> images to keep of each class [C]."""


class CifarDataset(ImageDataset):
    """A split of torchvision's files below `root`, with all pixels in memory.

    Raises UserError naming a file that is missing or damaged.
    """

    def __init__(self, root: Path, classes: int, split: str, transform: ImageTransform) -> None:
        files = CIFAR_FILES[classes]
        names = getattr(files, split)
        parts = [read_cifar_file(Path(root) / files.folder / name, files.label_key, classes) for name in names]
        images, labels = zip(*parts, strict=True)
        self._image_NHW3 = np.concatenate(images)
        self._files = names
        self._first = np.cumsum([0, *map(len, labels)])
        super().__init__(np.concatenate(labels), classes, transform)

    def image_name(self, index: int) -> str:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return f"{self._files[file]}:{index - self._first[file]}"

    def read_image(self, index: int) -> np.ndarray:
        return self._image_NHW3[index]


def _record_of(root: Path, split: str) -> Path:
    return Path(root) / f"{split}.rec"


def open_cifar(root: Path, classes: int, split: str) -> RecordDataset | CifarDataset:
    """Opens the split `train` or `test` in `root`: train.rec or test.rec, or else torchvision's files.

    Raises UserError if there is neither, or the number of classes differs.
    """
    transform = ExpectSize((_SIDE, _SIDE))
    record = _record_of(root, split)
    if not record.is_file():
        folder = CIFAR_FILES[classes].folder
        if not (Path(root) / folder).is_dir():
            raise UserError(
                f"data.root: {root} contains neither {folder} nor {record.name}; name their parent folder, or set "
                "data.download=true"
            )
        return CifarDataset(root, classes, split, transform)
    dataset = RecordDataset(record, transform=transform)
    if dataset.num_classes != classes:
        raise UserError(f"data.classes: {record} has {dataset.num_classes} classes, not {classes}")
    return dataset


def long_tailed_members(dataset: RecordDataset | CifarDataset, profile: str, imbalance: float) -> np.ndarray:
    """Returns the images of the long-tailed training set, int64 [K], class by class.

    From torchvision's files they are those of the LDAM-DRW code, which BBN, RIDE, ResLT and the bag of tricks copied:
    NumPy's legacy generator with seed 0 shuffles the images of each class in turn, and the first ones are kept. The
    images of a record are taken to be shuffled already, and the first ones are kept.

    Raises UserError if a class has too few images.
    """
    counts_C = np.bincount(dataset.labels, minlength=dataset.num_classes)
    target_C = PROFILES[profile](dataset.num_classes, imbalance, int(counts_C.max()))
    if (short_C := counts_C < target_C).any():
        label = int(np.argmax(short_C))
        raise UserError(
            f"data.imbalance: {imbalance:g} ({profile}) needs {target_C[label]} images of class {label}, which has "
            f"{counts_C[label]}; set at least {counts_C.max() / max(counts_C.min(), 1):g}, the imbalance of the data"
        )
    random = None if isinstance(dataset, RecordDataset) else np.random.RandomState(0)
    members = []
    for label, count in enumerate(target_C):
        index_K = np.flatnonzero(dataset.labels == label)
        if random is not None:
            random.shuffle(index_K)
        members.append(index_K[:count])
    return np.concatenate(members)


_SETS = {10: CIFAR10, 100: CIFAR100}


def download_cifar(root: Path, classes: int) -> None:
    """Downloads the published files to `root` unless they are there, from torchvision's URL, checked by its MD5 sums.

    Raises UserError if the archive cannot be downloaded or its MD5 sum differs.
    """
    files = _SETS[classes]
    parts = [*files.train_list, *files.test_list]
    if all(check_integrity(Path(root) / files.base_folder / name, md5) for name, md5 in parts):
        return
    try:
        download_and_extract_archive(files.url, str(root), filename=files.filename, md5=files.tgz_md5)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"data.download: {files.url} cannot be downloaded to {root} ({' '.join(str(error).split())[:160]}); "
            "download it by other means and unpack it there"
        ) from None
