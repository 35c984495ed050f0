"""The images of a verification set as a dataset, each different one once."""

from pathlib import Path

import numpy as np

from facelt.data.image_dataset import EncodedDataset
from facelt.data.list_dataset import FileDataset
from facelt.data.pair_files import Pairs, read_pairs
from facelt.data.transforms import ImageTransform


class PayloadDataset(EncodedDataset):
    """Encoded images that lie in memory, named by the file they came in and their places there."""

    def __init__(
        self, file: str, payloads: list[bytes], places: np.ndarray, transform: ImageTransform, max_pixels: int
    ) -> None:
        super().__init__(np.full(len(payloads), -1, dtype=np.int64), 0, transform, max_pixels)
        self._file, self._payloads, self._places = file, payloads, places

    def names(self, index: int) -> str:
        return f"{self._file}:{self._places[index]}"

    def payload(self, index: int) -> bytes:
        return self._payloads[index]


class VerificationSet:
    """A file of pairs (`pairs`), and the dataset of its images in their order (`dataset`); `name` is the file's stem.

    The paths of a list lie in `root`, by default the folder of the list. Raises UserError as `read_pairs` does.
    """

    def __init__(self, path: Path, *, transform: ImageTransform, max_pixels: int, root: Path | None = None) -> None:
        self.path = Path(path)
        self.pairs: Pairs = read_pairs(self.path)
        images = self.pairs.images
        if self.pairs.encoded:
            self.dataset = PayloadDataset(self.path.name, images, self.pairs.first_U, transform, max_pixels)
        else:
            labels = np.full(len(images), -1, dtype=np.int64)
            self.dataset = FileDataset(root or self.path.parent, images, labels, 0, transform, max_pixels)

    @property
    def name(self) -> str:
        return self.path.stem
