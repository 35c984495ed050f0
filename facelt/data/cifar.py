"""CIFAR-10 and CIFAR-100, whole or long-tailed.

Shapes: N images of a file, C classes, K images kept.
"""

from pathlib import Path

import numpy as np

from facelt.data.cifar_files import CIFAR_FILES, SIDE, read_cifar_file
from facelt.data.image_dataset import ImageDataset
from facelt.data.record_dataset import RecordDataset
from facelt.data.transforms import ExpectSize, ImageTransform
from facelt.errors import UserError
from recordio_tools.long_tail import exponential_counts, step_counts

PROFILES = {"exponential": exponential_counts, "step": step_counts}
"""Images to keep of each class: (classes, imbalance, images of the largest) -> int64 [C]."""


class CifarDataset(ImageDataset):
    """A split of torchvision's files below `root`, its pixels in memory.

    Raises UserError naming a file that is missing or is not what it should be.
    """

    def __init__(self, root: Path, classes: int, split: str, transform: ImageTransform) -> None:
        files = CIFAR_FILES[classes]
        names = getattr(files, split)
        parts = [read_cifar_file(Path(root) / files.folder / name, files.label) for name in names]
        images, labels = zip(*parts, strict=True)
        for name, label_N in zip(names, labels, strict=True):
            if label_N.min(initial=0) < 0 or label_N.max(initial=0) >= classes:
                raise UserError(f"{Path(root) / files.folder / name}: labels outside 0..{classes - 1}; fetch it again")
        self._image_NHW3 = np.concatenate(images)
        self._files = names
        self._first = np.cumsum([0, *map(len, labels)])
        super().__init__(np.concatenate(labels), classes, transform)

    def names(self, index: int) -> str:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return f"{self._files[file]}:{index - self._first[file]}"

    def pixels(self, index: int) -> np.ndarray:
        return self._image_NHW3[index]


def open_cifar(root: Path, classes: int, split: str) -> RecordDataset | CifarDataset:
    """The split `train` or `test` of what lies in `root`: train.rec and test.rec, or torchvision's files.

    Raises UserError where it is neither, or holds another number of classes.
    """
    transform = ExpectSize((SIDE, SIDE))
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


def long_tail(dataset: RecordDataset | CifarDataset, profile: str, imbalance: float) -> np.ndarray:
    """Which images make the long-tailed training set, int64 [K], class by class.

    Of torchvision's files they are those of LDAM-DRW's code, which BBN, RIDE, ResLT and the bag of tricks copied:
    numpy's first generator with seed 0 shuffles the images of each class in turn and the first ones stay. A record's
    images have been shuffled so by whoever wrote it, and the first ones stay.

    Raises UserError where a class has too few images.
    """
    counts_C = np.bincount(dataset.labels, minlength=dataset.num_classes)
    wanted_C = PROFILES[profile](dataset.num_classes, imbalance, int(counts_C.max()))
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
