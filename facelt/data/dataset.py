"""What every image dataset shares: a draw in, a sample or a named bad image out.

Shapes: N images of the dataset, B images of a batch, H height, W width.
"""

from abc import ABC, abstractmethod

import numpy as np
from torch.utils.data import Dataset

from facelt.data.batch import BadImage, FilledBatch, Sample, SampleRequest, SampleRequests
from facelt.data.decode import DEFAULT_MAX_PIXELS, UndecodableImage, decode_image
from facelt.data.transforms import ImageTransform


class ImageDataset(Dataset, ABC):
    """Images by index with `labels` (int64 [N], -1: open set or unlabelled), `num_classes` and `image_size`.

    Mistakes that concern the whole set stop at construction; a single image that cannot be used becomes a BadImage, so
    that the one who trains decides how many are too many.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, transform: ImageTransform) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self.transform = transform

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every sample."""
        return self.transform.image_size

    @abstractmethod
    def names(self, index: int) -> str:
        """What a person calls the image: 'file.rec:key' or a relative path."""

    @abstractmethod
    def pixels(self, index: int) -> np.ndarray:
        """The image as it is stored, uint8 [H,W,3] RGB. Raises UndecodableImage where it cannot be read."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: SampleRequest) -> Sample | BadImage:
        index, seed = draw
        try:
            image_HW3 = self.transform(self.pixels(index), seed)
        except UndecodableImage as error:
            return BadImage(self.names(index), str(error))
        return Sample(image_HW3, int(self.labels[index]), index, seed)

    def fill(self, draws: SampleRequests, image_BHW3: np.ndarray) -> FilledBatch:
        """Decodes the images of a batch into the rows of uint8 [B,H,W,3], in order and without gaps.

        Where some cannot be used, as many rows at the end are left as they were.
        """
        kept, bad = [], []
        for place, draw in enumerate(zip(draws.index_B.tolist(), draws.seed_B.tolist(), strict=True)):
            item = self[SampleRequest(*draw)]
            if isinstance(item, BadImage):
                bad.append(item)
            else:
                image_BHW3[len(kept)] = item.image_HW3
                kept.append(place)
        index_B = draws.index_B[kept]
        return FilledBatch(self.labels[index_B], index_B, draws.seed_B[kept], tuple(bad))


class EncodedImageDataset(ImageDataset):
    """Images stored as JPEG, PNG, WebP or BMP; one of more than `max_pixels` pixels is a bad image."""

    def __init__(
        self,
        labels: np.ndarray,
        num_classes: int,
        transform: ImageTransform,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        super().__init__(labels, num_classes, transform)
        self.max_pixels = max_pixels

    @abstractmethod
    def payload(self, index: int) -> bytes | memoryview:
        """The encoded image. Raises UndecodableImage where it cannot be read."""

    def pixels(self, index: int) -> np.ndarray:
        return decode_image(self.payload(index), self.max_pixels)
