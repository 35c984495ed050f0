"""Faces of a .rec file in InsightFace's layout, whole or as a manifest selects and relabels them.

Shapes: N images of the dataset.
"""

from pathlib import Path

import numpy as np

from facelt.data.decode import DEFAULT_MAX_PIXELS, UndecodableImage
from facelt.data.image_dataset import EncodedDataset
from facelt.data.manifest import read_manifest
from facelt.data.transforms import ExpectSize, ImageTransform
from facelt.errors import UserError
from recordio_tools import FaceRecord, RecordIOError


class RecordDataset(EncodedDataset):
    """Images of `path`; with `manifest` (key, label, new_label) only its rows, in its order, with the new labels.

    Without `transform` every image must have the size that the file's `property` states; another size is a bad image.
    Payloads are views of the memory map, decoded where they lie.

    Raises UserError: a missing or damaged file, a label outside `property`, a manifest of another file.
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
            raise UserError(f"{path}: the file holds no images")
        if manifest is not None:
            key_N, label_N = _select(path, manifest, key_N, label_N)
            num_classes = int(label_N.max()) + 1
        if transform is None:
            if self._record.image_size is None:
                raise UserError(f"{path}: no 'property' file beside it states the image size; add one, or a transform")
            transform = ExpectSize(tuple(self._record.image_size))
        self.keys = key_N
        super().__init__(label_N, num_classes, transform, max_pixels)

    def names(self, index: int) -> str:
        return f"{self._file}:{self.keys[index]}"

    def payload(self, index: int) -> memoryview:
        try:
            return self._record.read(int(self.keys[index])).payload
        except RecordIOError as error:
            raise UndecodableImage(str(error)) from error


def _select(path: Path, manifest_path: Path, key_N: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and new labels of the manifest's rows, checked against the file."""
    rows = read_manifest(manifest_path)
    order_N = np.argsort(key_N)
    place_M = order_N[np.searchsorted(key_N, rows.key_M, sorter=order_N).clip(max=len(key_N) - 1)]
    for wrong_M, what in (
        (key_N[place_M] != rows.key_M, "which holds no image there"),
        (label_N[place_M] != rows.label_M, "where it has another label"),
    ):
        if wrong_M.any():
            key = rows.key_M[np.argmax(wrong_M)]
            raise UserError(f"{manifest_path}: key {key} does not fit {path}, {what}; use the file it was sampled from")
    return rows.key_M, rows.new_label_M
