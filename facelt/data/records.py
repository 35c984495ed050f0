"""Record data: faces of a .rec file in InsightFace's layout, whole or as a manifest selects and relabels them.

N images of the dataset, M rows of a manifest, C classes.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from facelt.config.base import ImageSide
from facelt.config.registry import register_data_kind
from facelt.data.augmentation import AugmentationSettings, FaceAugmentation
from facelt.data.dataset import EncodedImageDataset
from facelt.data.decode import BadImageError
from facelt.data.kind import RELABELLED, ClassMap, DataKind, Split, TrainingData
from facelt.data.samplers import split_test_images, train_validation_split
from facelt.data.transforms import ExpectSize, ImageTransform, Resize
from facelt.errors import UserError
from recordio_tools.bounded_io import read_utf8
from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import IDENTITIES_FILE, FaceRecord, read_identities
from recordio_tools.image_header import DEFAULT_MAX_PIXELS
from recordio_tools.reader import record_path


@register_data_kind("record")
class RecordData(DataKind):
    """The .rec `train` in InsightFace's layout, or a folder with a train.rec.

    A `manifest` of `recordio-tools sample` selects some of its records. Training images are mirrored at random with
    `flip`. With a `test_fraction`, that part of the images of each identity with two or more, at least one and at most
    `test_limit`, are the split `test`. `validation_fraction` of the others are held out for validation, but never an
    identity's last one. With `resize` images of another size than `image_size` are resized to it, else they are bad
    images. `augment` changes training images at random, for `{}` as AdaFace does; without the key they stay as they
    are.
    """

    train: Path
    manifest: Path | None = None
    image_size: tuple[ImageSide, ImageSide] = (112, 112)
    resize: bool = False
    flip: bool = True
    augment: AugmentationSettings | None = None
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    test_fraction: float = Field(0.0, ge=0, lt=1)
    test_limit: int = Field(5, ge=1)

    @property
    def record(self) -> Path:
        """The .rec file. Raises UserError if there is none."""
        return record_path(self.train)

    @property
    def training_file(self) -> str:
        """The record, and the manifest if there is one."""
        return self.record.name if self.manifest is None else f"{self.record.name}, {self.manifest.name}"

    def open(self, seed: int) -> TrainingData:
        plain = self.eval_transform()
        dataset = RecordDataset(self.record, manifest=self.manifest, transform=plain, max_pixels=self.max_pixels)
        rest_index, test_index = split_test_images(dataset.labels, self.test_fraction, self.test_limit, seed)
        train_N, validation_N = train_validation_split(dataset.labels[rest_index], self.validation_fraction, seed)
        train = train_plain = Split(dataset, rest_index[train_N])
        if self.augment is not None:
            train = train_plain.with_transform(FaceAugmentation(self.augment, plain))
        members = {"validation": rest_index[validation_N], "test": test_index}
        evaluation = {name: Split(dataset, index) for name, index in members.items() if len(index)}
        return TrainingData(train, train_plain, evaluation, dataset.num_classes, self.preprocessing(flip=self.flip))

    def eval_transform(self) -> ImageTransform:
        if self.resize:
            return Resize(self.image_size)
        return ExpectSize(self.image_size, remedy="; data.resize: true resizes it")

    def known_class_names(self, data: TrainingData) -> dict[int, str]:
        """Returns the names in identities.csv in the folder of the record."""
        return self.listed_names(data.num_classes)

    def listed_names(self, num_classes: int) -> dict[int, str]:
        """Returns `known_class_names` of data with `num_classes` classes; the record need not exist."""
        path = (self.train if self.train.is_dir() else self.train.parent) / IDENTITIES_FILE
        rows = read_identities(path) if path.is_file() else {}
        labels = self.class_map(num_classes).label_C.tolist()
        return {number: rows[label]["name"] for number, label in enumerate(labels) if label in rows}

    def class_map(self, num_classes: int) -> ClassMap:
        """Records selected by a manifest have new labels."""
        if self.manifest is None:
            return super().class_map(num_classes)
        rows = _read_manifest(self.manifest)
        label_C = np.full(num_classes, -1, dtype=np.int64)
        label_C[rows.new_label_M] = rows.label_M
        return ClassMap(label_C, RELABELLED)


_HEADER = "key,label,new_label"
_MAX_MANIFEST_BYTES = 1 << 31


class _Manifest(NamedTuple):
    """Columns of a manifest, each int64 [M]: record key, label in the record, label to train with."""

    key_M: np.ndarray
    label_M: np.ndarray
    new_label_M: np.ndarray


def _read_manifest(path: Path) -> _Manifest:
    """Reads and checks a CSV file `key,label,new_label`.

    Raises UserError naming the file, and the line if there is one: missing, another header, a value that is not a
    non-negative integer, a duplicate key, or labels and new labels that are not one to one.
    """
    try:
        text = read_utf8(Path(path), _MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read the manifest: {reason}") from error
    header, _, body = text.partition("\n")
    if header.strip() != _HEADER:
        raise UserError(f"{path}, line 1: expected the header {_HEADER!r} of a manifest, found {header.strip()[:80]!r}")
    if not body.strip():
        raise UserError(f"{path}: the manifest lists no images")
    try:
        table_M3 = np.loadtxt(io.StringIO(body), delimiter=",", dtype=np.int64, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}{_bad_line(body)}: expected three integers {_HEADER}") from error
    if table_M3.shape[1] != 3:
        raise UserError(f"{path}, line 2: expected three integers {_HEADER}")
    manifest = _Manifest(*(np.ascontiguousarray(column) for column in table_M3.T))
    _check_manifest(path, manifest)
    return manifest


def _bad_line(body: str) -> str:
    """Returns ', line n' for the first line that is not three integers."""
    for number, line in enumerate(body.split("\n"), start=2):
        try:
            values = [int(value) for value in line.split(",")] if line.strip() else [0, 0, 0]
        except ValueError:
            values = []
        if len(values) != 3 or any(abs(value) >= 2**63 for value in values):
            return f", line {number}"
    return ""


def _check_manifest(path: Path, manifest: _Manifest) -> None:
    """Raises UserError: a negative value, a duplicate key, or a relabelling that is not one to one."""
    if min(column.min() for column in manifest) < 0:
        raise UserError(f"{path}: a key or a label is negative")
    key_M, count_M = np.unique(manifest.key_M, return_counts=True)
    if len(key_M) < len(manifest.key_M):
        raise UserError(f"{path}: key {key_M[count_M > 1][0]} is listed twice")
    pair_I2 = np.unique(np.stack([manifest.label_M, manifest.new_label_M], 1), axis=0)
    for column, name, other_name in ((0, "label", "new labels"), (1, "new label", "labels")):
        value_I, count_I = np.unique(pair_I2[:, column], return_counts=True)
        if (count_I > 1).any():
            raise UserError(f"{path}: {name} {value_I[count_I > 1][0]} has several {other_name}; each identity has one")


class RecordDataset(EncodedImageDataset):
    """Images of a .rec file; with `manifest` only the records it lists, in its order, with the new labels.

    Without `transform` all images must have the size in the `property` file; one of another size is a bad image.
    Encoded images are views of the memory map.

    Raises UserError: a missing or damaged file, a label outside the range in `property`, or a manifest of another file.
    """

    def __init__(
        self,
        path: Path,
        *,
        manifest: Path | None = None,
        transform: ImageTransform | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        try:
            self._record = FaceRecord(path)
            key_N, label_N = self._record.image_keys, self._record.labels
        except (RecordIOError, OSError) as error:
            raise UserError(str(error)) from error
        self._file = Path(path).name
        num_classes = self._record.num_identities
        if not len(key_N):
            raise UserError(f"{path}: the file contains no images")
        if manifest is not None:
            key_N, label_N = _select(path, manifest, key_N, label_N, num_classes)
            num_classes = int(label_N.max()) + 1
        if transform is None:
            if self._record.image_size is None:
                raise UserError(f"{path}: the image size is unknown without a 'property' file; add one, or a transform")
            transform = ExpectSize(tuple(self._record.image_size))
        self.keys = key_N
        super().__init__(label_N, num_classes, transform, max_pixels)

    def image_name(self, index: int) -> str:
        return f"{self._file}:{self.keys[index]}"

    def read_encoded(self, index: int) -> memoryview:
        try:
            return self._record.read(int(self.keys[index])).payload
        except RecordIOError as error:
            raise BadImageError(str(error)) from error


def _select(
    path: Path, manifest_path: Path, key_N: np.ndarray, label_N: np.ndarray, identities: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys and new labels of a manifest, checked against the file and its number of identities."""
    rows = _read_manifest(manifest_path)
    order_N = np.argsort(key_N)
    position_M = order_N[np.searchsorted(key_N, rows.key_M, sorter=order_N).clip(max=len(key_N) - 1)]
    for mismatch_M, problem in (
        (key_N[position_M] != rows.key_M, "which has no image of that key"),
        (label_N[position_M] != rows.label_M, "where it has another label"),
    ):
        if mismatch_M.any():
            key = rows.key_M[np.argmax(mismatch_M)]
            raise UserError(
                f"{manifest_path}: key {key} does not match {path}, {problem}; use the file it was sampled from"
            )
    # Every label up to the largest becomes a class of the model.
    largest = int(np.argmax(rows.new_label_M))
    if rows.new_label_M[largest] >= identities:
        raise UserError(
            f"{manifest_path}: key {rows.key_M[largest]} has the new label {rows.new_label_M[largest]}, but {path} has "
            f"only {identities} identities; number the new labels from 0"
        )
    return rows.key_M, rows.new_label_M
