"""Base classes of image datasets: a sample request in, a sample or a named bad image out.

N images of the dataset, B images of a batch, H height, W width.
"""

import copy
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from torch.utils.data import Dataset

from facelt.data.batch import BadImage, FilledBatch, Sample, SampleRequest, SampleRequests
from facelt.data.decode import BadImageError, decode_image
from facelt.data.transforms import ImageTransform
from facelt.errors import UserError
from recordio_tools.image_header import DEFAULT_MAX_PIXELS

_TRIED = 16
"""Images that `require_usable` reads at most."""


class ImageDataset(Dataset, ABC):
    """Images by index with `labels` (int64 [N], -1: open set or unlabelled), `num_classes` and `image_size`.

    Errors that concern the whole set are raised at construction; a single unusable image becomes a BadImage, and the
    caller decides how many are too many.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, transform: ImageTransform) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self.transform = transform

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every sample."""
        return self.transform.image_size

    def with_transform(self, transform: ImageTransform) -> Self:
        """Returns the same images under another transform; labels, open files and their index are shared."""
        changed = copy.copy(self)
        changed.transform = transform
        return changed

    @abstractmethod
    def image_name(self, index: int) -> str:
        """Returns the image's name in messages: 'file.rec:key' or a relative path."""

    @abstractmethod
    def read_image(self, index: int) -> np.ndarray:
        """Returns the image before the transform, uint8 [H,W,3] RGB. Raises BadImageError."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, request: SampleRequest) -> Sample | BadImage:
        index, seed = request
        try:
            image_HW3 = self.transform(self.read_image(index), seed)
        except BadImageError as error:
            return BadImage(self.image_name(index), str(error))
        return Sample(image_HW3, int(self.labels[index]), index, seed)

    def require_usable(self, members: np.ndarray) -> None:
        """Raises UserError if none of a few images, spread over `members`, can be used, as with a wrong size or root.

        This finds such mistakes before a model runs; fewer bad images are the caller's to count.
        """
        bad_images = []
        for position in np.unique(np.linspace(0, max(len(members) - 1, 0), min(len(members), _TRIED)).astype(np.int64)):
            item = self[SampleRequest(int(members[position]), 0)]
            if not isinstance(item, BadImage):
                return
            bad_images.append(item)
        if bad_images:
            name, reason = bad_images[0]
            raise UserError(f"{name}: {reason}; none of the {len(bad_images)} images that were tried can be used")

    def fill_batch(self, requests: SampleRequests, image_BHW3: np.ndarray) -> FilledBatch:
        """Decodes the requested images into the rows of uint8 [B,H,W,3], in order; bad images leave no gaps.

        Rows at the end stay unchanged, one for each bad image.
        """
        used, bad_images = [], []
        for position, request in enumerate(zip(requests.index_B.tolist(), requests.seed_B.tolist(), strict=True)):
            item = self[SampleRequest(*request)]
            if isinstance(item, BadImage):
                bad_images.append(item)
            else:
                image_BHW3[len(used)] = item.image_HW3
                used.append(position)
        index_B = requests.index_B[used]
        return FilledBatch(self.labels[index_B], index_B, requests.seed_B[used], tuple(bad_images))


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
    def read_encoded(self, index: int) -> bytes | memoryview:
        """Returns the encoded image. Raises BadImageError if it cannot be read."""

    def read_image(self, index: int) -> np.ndarray:
        return decode_image(self.read_encoded(index), self.max_pixels)
