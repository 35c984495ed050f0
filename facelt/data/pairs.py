"""Verification pairs: two images and whether both show one person, from InsightFace's .bin files or lists of pairs.

U distinct images, P pairs.
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

# The first line of LFW's pairs.txt: the number of folds and of pairs in each, or the number of pairs alone.
_LFW_HEADER = re.compile(r"[0-9]+([ \t]+[0-9]+)?")
_IMAGE_NUMBER = re.compile(r"[0-9]{1,9}")


class ImagePairs(NamedTuple):
    """The distinct images of a set, encoded or as paths, and the pairs by positions in `images`, int64 [P] each.

    `first_U` is the position in the file where each image comes first; `same_P` marks pairs of one person, bool [P].
    """

    images: list[bytes] | list[str]
    first_U: np.ndarray
    left_P: np.ndarray
    right_P: np.ndarray
    same_P: np.ndarray

    @property
    def is_encoded(self) -> bool:
        """True if `images` are encoded images, false if they are paths."""
        return isinstance(self.images[0], bytes)

    @classmethod
    def of(cls, images: Iterable[Hashable], same: Iterable[bool]) -> "ImagePairs":
        """Returns the pairs of 2 P images, two by two, and P labels."""
        positions: dict[Hashable, int] = {}
        index_N = np.array([positions.setdefault(image, len(positions)) for image in images], dtype=np.int64)
        first_U = np.unique(index_N, return_index=True)[1]
        return cls(list(positions), first_U, index_N[0::2], index_N[1::2], np.array(same, dtype=bool))


def read_pairs(path: Path) -> ImagePairs:
    """Reads a .bin file of encoded images, or a list of paths, without decoding any image.

    Lines of a list are `path path same`, where same is 1 or 0, separated by tabs, or by spaces if there is no tab; or
    the list is LFW's pairs.txt. Raises UserError naming the file, and the line or image at fault.
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
            f"{path}: {len(images):,} images for {len(labels):,} pairs, expected two per pair; download it again"
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
    images, labels = [], []
    for number, line in enumerate(lines[is_lfw:], start=1 + is_lfw):
        parts = line.split("\t") if "\t" in line else line.split()
        pair = (_lfw_pair if is_lfw else _plain_pair)([part.strip() for part in parts])
        if pair is None:
            expected = "name n m, or name n name m" if is_lfw else "path path 1, or path path 0"
            raise UserError(f"{path}, line {number}: expected {expected}, found {line[:120]!r}")
        images += pair[:2]
        labels.append(pair[2])
    for side in (images[0::2], images[1::2]):
        check_relative(path, side, first_line=1 + is_lfw)
    return _refuse_empty(path, ImagePairs.of(images, labels))


def _plain_pair(parts: list[str]) -> tuple[str, str, bool] | None:
    return (parts[0], parts[1], parts[2] == "1") if len(parts) == 3 and all(parts) and parts[2] in "01" else None


def _lfw_pair(parts: list[str]) -> tuple[str, str, bool] | None:
    """Returns two images of one person, by their numbers, or one image each of two people."""
    same = len(parts) == 3
    if same:
        parts = [parts[0], parts[1], parts[0], parts[2]]
    if len(parts) != 4 or not all(_IMAGE_NUMBER.fullmatch(number) for number in parts[1::2]):
        return None
    left, right = (f"{name}/{name}_{int(number):04d}.jpg" for name, number in (parts[:2], parts[2:]))
    return left, right, same


def _refuse_empty(path: Path, pairs: ImagePairs) -> ImagePairs:
    if not len(pairs.same_P):
        raise UserError(f"{path}: the file contains no pair")
    return pairs
