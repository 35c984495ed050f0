"""torchvision's files of CIFAR-10 and CIFAR-100, read without letting a pickle run anything.

Shapes: N images.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelt.data.plain_pickle import PlainUnpickler
from facelt.errors import UserError

SIDE = 32


class CifarFiles(NamedTuple):
    """How one of the two sets lies on the disk: its folder, the files of both splits, and the name of the labels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str


CIFAR_FILES = {
    10: CifarFiles("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "labels"),
    100: CifarFiles("cifar-100-python", ("train",), ("test",), "fine_labels"),
}


def read_cifar_file(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N,32,32,3], labels int64 [N]) of one file, the labels under the key `label`.

    Raises UserError: a file that is missing, that is no pickle of plain values and one array of bytes, or whose images
    and labels do not fit each other.
    """
    try:
        values = PlainUnpickler(path.read_bytes(), what="file of CIFAR", encoding="latin1").load()
        pixel_N, labels = values["data"].value, values[label]
        # Looked at before numpy does, which takes for ever over lists of lists of lists.
        if not isinstance(labels, list) or not all(isinstance(one, int) for one in labels):
            raise ValueError(f"{label} is no list of numbers")
        label_N = np.array(labels, dtype=np.int64)
        image_N3HW = pixel_N.reshape(-1, 3, SIDE, SIDE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch the files again") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no file of CIFAR ({reason or type(error).__name__}); fetch it again") from None
    if label_N.shape != (len(image_N3HW),):
        raise UserError(f"{path}: {len(image_N3HW)} images and labels of the shape {label_N.shape}; fetch it again")
    return np.ascontiguousarray(image_N3HW.transpose(0, 2, 3, 1)), label_N
