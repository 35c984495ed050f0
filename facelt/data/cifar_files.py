"""torchvision's files of CIFAR-10 and CIFAR-100, read without letting a pickle run anything.

Shapes: N images.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


class _Bytes:
    """What stands for numpy's array while a file is read: it takes pixels, and nothing else."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, column_major, data = state
        if kind is not _UINT8 or not isinstance(data, str | bytes):
            raise pickle.UnpicklingError("an array of another kind than bytes")
        # The published files were written by Python 2, whose strings are text here.
        data = data.encode("latin-1") if isinstance(data, str) else data
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


class _Kind:
    """What stands for numpy's dtype."""

    def __setstate__(self, state: tuple) -> None:
        """Byte order and alignment say nothing about bytes."""


_UINT8 = _Kind()
_ARRAY = object()


def _reconstruct(kind: object, *_: Any) -> _Bytes:
    if kind is not _ARRAY:
        raise pickle.UnpicklingError("an array of an unknown class")
    return _Bytes()


def _dtype(name: str, *_: Any) -> _Kind:
    if name != "u1":
        raise pickle.UnpicklingError(f"an array of {name!r} where u1 is expected")
    return _UINT8


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _dtype,
}


class _Unpickler(pickle.Unpickler):
    """Knows stand-ins for the few names that these files hold, so nothing of any module is ever reached."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR holds")
        return _ADMITTED[module, name]


def read_cifar_file(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N,32,32,3], labels int64 [N]) of one file, the labels under the key `label`.

    Raises UserError: a file that is missing, that is no pickle of plain values and one array of bytes, or whose images
    and labels do not fit each other.
    """
    try:
        with path.open("rb") as file:
            values = _Unpickler(file, encoding="latin1").load()
        pixel_N, label_N = values["data"].pixels, np.array(values[label], dtype=np.int64)
        image_N3HW = pixel_N.reshape(-1, 3, SIDE, SIDE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch the files again") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no file of CIFAR ({reason or type(error).__name__}); fetch it again") from None
    if label_N.shape != (len(image_N3HW),):
        raise UserError(f"{path}: {len(image_N3HW)} images and labels of the shape {label_N.shape}; fetch it again")
    return np.ascontiguousarray(image_N3HW.transpose(0, 2, 3, 1)), label_N
