"""Sets for verification, pairs of images and whether both show one person: InsightFace's .bin, and lists of pairs.

U different images, P pairs.

The images of a verification set as a dataset, each different one once.
"""

import re
import reprlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelt.data.restricted_pickle import PickledArray, read_restricted_pickle
from facelt.errors import UserError
from recordio_tools.lists import check_relative, read_lines

# LFW's pairs.txt begins with its folds and the pairs of each, or with the pairs alone.
_LFW_HEADER = re.compile(r"[0-9]+([ \t]+[0-9]+)?")


class ImagePairs(NamedTuple):
    """The different images of a set, each once: encoded, or as paths; where in the file each comes first, and the pairs
    by positions among the images, int64 [P] each, with whether they are of one person, bool [P].
    """

    images: list[bytes] | list[str]
    first_U: np.ndarray
    left_P: np.ndarray
    right_P: np.ndarray
    same_P: np.ndarray

    @property
    def encoded(self) -> bool:
        """Whether the images are encoded ones, not paths."""
        return isinstance(self.images[0], bytes)

    @classmethod
    def of(cls, images: Iterable[Hashable], same: Iterable[bool]) -> "ImagePairs":
        """Of images two by two, 2 P of them, and P answers."""
        place: dict[Hashable, int] = {}
        index_N = np.array([place.setdefault(image, len(place)) for image in images], dtype=np.int64)
        first_U = np.unique(index_N, return_index=True)[1]
        return cls(list(place), first_U, index_N[0::2], index_N[1::2], np.array(same, dtype=bool))


def read_pairs(path: Path) -> ImagePairs:
    """A .bin with encoded images, or a list with the paths of images. No image is looked at.

    A list has lines `path path same`, same being 1 or 0, the parts separated by tabs or, where none is there, by
    spaces; or it is in the layout of LFW's pairs.txt. Raises UserError naming the file, and the line or image at fault.
    """
    path = Path(path)
    return _read_bin(path) if path.suffix == ".bin" else _read_list(path)


def _read_bin(path: Path) -> ImagePairs:
    """Reads a pickle of (images, labels), as Python 2 or 3 wrote it."""
    values = read_restricted_pickle(path, what="verification set", encoding="bytes", dtypes=("u1", "b1"))
    images, labels = values if isinstance(values, list | tuple) and len(values) == 2 else (None, None)
    labels = labels.value.tolist() if isinstance(labels, PickledArray) else labels
    if not isinstance(images, list | tuple) or not isinstance(labels, list | tuple):
        raise UserError(
            f"{path}: not a verification set (expected a list of images and a list of labels); download it again"
        )
    for number, label in enumerate(labels):
        if not isinstance(label, int) or label not in (0, 1):
            # reprlib truncates: a nested tuple may be astronomically long when written out.
            value = reprlib.repr(label)[:40]
            raise UserError(f"{path}: pair {number} has the label {value}, expected True or False; download it again")
    if len(images) != 2 * len(labels):
        raise UserError(
            f"{path}: {len(images):,} images for {len(labels):,} pairs, expected two a pair; download it again"
        )
    # An array that is listed twice is converted once.
    encoded: dict[int, bytes] = {}
    for number, image in enumerate(images):
        if id(image) not in encoded:
            encoded[id(image)] = _encoded(path, number, image)
    return _refuse_empty(path, ImagePairs.of((encoded[id(image)] for image in images), labels))


def _encoded(path: Path, number: int, image: object) -> bytes:
    if isinstance(image, PickledArray) and image.value.dtype == np.uint8 and image.value.ndim == 1:
        return image.value.tobytes()
    if not isinstance(image, bytes):
        raise UserError(
            f"{path}: image {number} is not an encoded image (bytes, or a row of them as an array); download it again"
        )
    return image


def _read_list(path: Path) -> ImagePairs:
    lines = read_lines(path)
    is_lfw = _LFW_HEADER.fullmatch(lines[0].strip()) is not None
    images, answers = [], []
    for number, line in enumerate(lines[is_lfw:], start=1 + is_lfw):
        parts = line.split("\t") if "\t" in line else line.split()
        found = (_lfw_pair if is_lfw else _plain_pair)([part.strip() for part in parts])
        if found is None:
            wanted = "name n m, or name n name m" if is_lfw else "path path 1, or path path 0"
            raise UserError(f"{path}, line {number}: expected {wanted}, found {line[:120]!r}")
        images += found[:2]
        answers.append(found[2])
    for side in (images[0::2], images[1::2]):
        check_relative(path, side, first_line=1 + is_lfw)
    return _refuse_empty(path, ImagePairs.of(images, answers))


def _plain_pair(parts: list[str]) -> tuple[str, str, bool] | None:
    return (parts[0], parts[1], parts[2] == "1") if len(parts) == 3 and all(parts) and parts[2] in "01" else None


def _lfw_pair(parts: list[str]) -> tuple[str, str, bool] | None:
    """Two images of one person by their numbers, or an image each of two."""
    same = len(parts) == 3
    if same:
        parts = [parts[0], parts[1], parts[0], parts[2]]
    if len(parts) != 4 or not (parts[1].isdecimal() and parts[3].isdecimal()):
        return None
    one, other = (f"{name}/{name}_{int(number):04d}.jpg" for name, number in (parts[:2], parts[2:]))
    return one, other, same


def _refuse_empty(path: Path, pairs: ImagePairs) -> ImagePairs:
    if not len(pairs.same_P):
        raise UserError(f"{path}: the file holds no pair")
    return pairs
