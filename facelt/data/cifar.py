"""torchvision's files of CIFAR-10 and CIFAR-100, read without letting a pickle run anything.

Shapes: N images.

CIFAR-10 and CIFAR-100, whole or long-tailed.

Shapes: N images of a file, C classes, K images kept.

Fetching CIFAR where it was published.
"""

import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from facelt.data.dataset import ImageDataset
from facelt.data.records import RecordDataset
from facelt.data.restricted_pickle import PickledArray, read_restricted_pickle
from facelt.data.transforms import ExpectSize, ImageTransform
from facelt.errors import UserError
from recordio_tools.long_tail import exponential_counts, step_counts

CIFAR_SIDE = 32


class CifarFiles(NamedTuple):
    """How one of the two sets lies on the disk: its folder, the files of both splits, and the name of the labels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_key: str


CIFAR_FILES = {
    10: CifarFiles("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "labels"),
    100: CifarFiles("cifar-100-python", ("train",), ("test",), "fine_labels"),
}


def read_cifar_file(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads (images uint8 [N,32,32,3], labels int64 [N]) from one file of torchvision.

    Raises UserError: a missing file, content other than plain values and one array of bytes, labels outside
    0..num_classes - 1, or image and label counts that differ.
    """
    values = read_restricted_pickle(path, what="CIFAR file", encoding="latin1")
    values = values if isinstance(values, dict) else {}
    pixels, labels = values.get("data"), values.get(label_key)
    if not isinstance(pixels, PickledArray) or pixels.value.size % (3 * CIFAR_SIDE**2):
        raise UserError(f"{path}: not a CIFAR file (data is not an array of images); download it again")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise UserError(f"{path}: not a CIFAR file ({label_key} is not a list of numbers); download it again")
    if not all(0 <= label < num_classes for label in labels):
        raise UserError(f"{path}: labels outside 0..{num_classes - 1}; download it again")
    image_N3HW = pixels.value.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    if len(labels) != len(image_N3HW):
        raise UserError(f"{path}: {len(image_N3HW)} images but {len(labels)} labels; download it again")
    return np.ascontiguousarray(image_N3HW.transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64)


_PROFILES = {"exponential": exponential_counts, "step": step_counts}
"""Images to keep of each class: (classes, imbalance, images of the largest) -> int64 [C]."""


class CifarDataset(ImageDataset):
    """A split of torchvision's files below `root`, its pixels in memory.

    Raises UserError naming a file that is missing or is not what it should be.
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


def open_cifar(root: Path, classes: int, split: str) -> RecordDataset | CifarDataset:
    """The split `train` or `test` of what lies in `root`: train.rec and test.rec, or torchvision's files.

    Raises UserError where it is neither, or holds another number of classes.
    """
    transform = ExpectSize((CIFAR_SIDE, CIFAR_SIDE))
    record = Path(root) / f"{split}.rec"
    if not record.is_file():
        folder = CIFAR_FILES[classes].folder
        if not (Path(root) / folder).is_dir():
            raise UserError(
                f"data.root: {root} holds neither {folder} nor {record.name}; name the folder above the files, or set "
                "data.download=true"
            )
        return CifarDataset(root, classes, split, transform)
    dataset = RecordDataset(record, transform=transform)
    if dataset.num_classes != classes:
        raise UserError(f"data.classes: {record} has {dataset.num_classes} classes, not {classes}")
    return dataset


def long_tailed_members(dataset: RecordDataset | CifarDataset, profile: str, imbalance: float) -> np.ndarray:
    """Which images make the long-tailed training set, int64 [K], class by class.

    Of torchvision's files they are those of LDAM-DRW's code, which BBN, RIDE, ResLT and the bag of tricks copied:
    numpy's first generator with seed 0 shuffles the images of each class in turn and the first ones stay. A record's
    images have been shuffled so by whoever wrote it, and the first ones stay.

    Raises UserError where a class has too few images.
    """
    counts_C = np.bincount(dataset.labels, minlength=dataset.num_classes)
    wanted_C = _PROFILES[profile](dataset.num_classes, imbalance, int(counts_C.max()))
    if (short_C := counts_C < wanted_C).any():
        label = int(np.argmax(short_C))
        raise UserError(
            f"data.imbalance: {imbalance:g} ({profile}) takes {wanted_C[label]} images of class {label}, which has "
            f"{counts_C[label]}; ask for at least {counts_C.max() / max(counts_C.min(), 1):g}, what is there itself"
        )
    random = None if isinstance(dataset, RecordDataset) else np.random.RandomState(0)
    kept = []
    for label, wanted in enumerate(wanted_C):
        index_K = np.flatnonzero(dataset.labels == label)
        if random is not None:
            random.shuffle(index_K)
        kept.append(index_K[:wanted])
    return np.concatenate(kept)


_SETS = {10: CIFAR10, 100: CIFAR100}


def download_cifar(root: Path, classes: int) -> None:
    """Lays the published files below `root` unless they are there: torchvision's address, torchvision's MD5 sums.

    Raises UserError where the archive cannot be fetched or is another one.
    """
    files = _SETS[classes]
    parts = [*files.train_list, *files.test_list]
    if all(check_integrity(Path(root) / files.base_folder / name, md5) for name, md5 in parts):
        return
    try:
        download_and_extract_archive(files.url, str(root), filename=files.filename, md5=files.tgz_md5)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"data.download: {files.url} cannot be laid below {root} ({' '.join(str(error).split())[:160]}); fetch it "
            "by other means and unpack it there"
        ) from None
