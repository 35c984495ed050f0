"""Verification sets: pairs of images and the dataset of the images."""

from pathlib import Path

import numpy as np

from facelt.data.dataset import EncodedImageDataset
from facelt.data.image_files import ImageFileDataset
from facelt.data.pairs import ImagePairs, read_pairs
from facelt.data.transforms import ImageTransform


class EncodedBytesDataset(EncodedImageDataset):
    """Encoded images in memory, named by their file and their position in it."""

    def __init__(
        self, file: str, payloads: list[bytes], positions: np.ndarray, transform: ImageTransform, max_pixels: int
    ) -> None:
        super().__init__(np.full(len(payloads), -1, dtype=np.int64), 0, transform, max_pixels)
        self._file, self._payloads, self._positions = file, payloads, positions

    def image_name(self, index: int) -> str:
        return f"{self._file}:{self._positions[index]}"

    def read_encoded(self, index: int) -> bytes:
        return self._payloads[index]


class VerificationSet:
    """Pairs of a file (`pairs`) and the dataset of their distinct images (`dataset`); `name` is the stem of the file.

    Paths in a list are relative to `root`, by default the folder of the list. Raises UserError as `read_pairs` does.
    """

    def __init__(self, path: Path, *, transform: ImageTransform, max_pixels: int, root: Path | None = None) -> None:
        self.path = Path(path)
        self.pairs: ImagePairs = read_pairs(self.path)
        images = self.pairs.images
        if self.pairs.is_encoded:
            self.dataset = EncodedBytesDataset(self.path.name, images, self.pairs.first_U, transform, max_pixels)
        else:
            labels = np.full(len(images), -1, dtype=np.int64)
            self.dataset = ImageFileDataset(root or self.path.parent, images, labels, 0, transform, max_pixels)

    @property
    def name(self) -> str:
        return self.path.stem
