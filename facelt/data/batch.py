"""What travels from a dataset to the model: one draw in, one sample or bad image out, many of them in a batch.

Shapes: B images of a batch, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate


class Draw(NamedTuple):
    """One image asked for: its index in the dataset and the seed of everything random about this look at it."""

    index: int
    seed: int


class Sample(NamedTuple):
    """One decoded image, uint8 [H,W,3] RGB, with its label (-1: open set or unlabelled) and the draw it answers."""

    image_HW3: np.ndarray
    label: int
    index: int
    seed: int


class BadImage(NamedTuple):
    """An image that could not be used, by name (record file and key, or path) and reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Images of one step, uint8 [B,H,W,3] RGB; label, dataset index and draw seed, int64 [B]; and what was left out.

    B is smaller than asked for by the number of bad images, and may be 0.
    """

    image_BHW3: torch.Tensor
    label_B: torch.Tensor
    index_B: torch.Tensor
    seed_B: torch.Tensor
    bad: tuple[BadImage, ...] = ()

    def __len__(self) -> int:
        return len(self.label_B)

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; the DataLoader calls this."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; copies from page-locked memory do not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change) -> "Batch":
        names = ("image_BHW3", "label_B", "index_B", "seed_B")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Collate:
    """Samples and bad images of one step -> Batch; `image_size` (height, width) gives an empty batch its shape."""

    image_size: tuple[int, int]

    def __call__(self, items: Sequence[Sample | BadImage]) -> Batch:
        samples = [item for item in items if isinstance(item, Sample)]
        bad = tuple(item for item in items if isinstance(item, BadImage))
        if not samples:
            empty = torch.empty(0, dtype=torch.int64)
            return Batch(torch.empty((0, *self.image_size, 3), dtype=torch.uint8), empty, empty, empty, bad)
        images, *numbers = zip(*samples, strict=True)
        # default_collate writes straight into shared memory inside a worker: one copy, none at the hand-over.
        image_BHW3 = default_collate([torch.from_numpy(image) for image in images])
        return Batch(image_BHW3, *(torch.tensor(column, dtype=torch.int64) for column in numbers), bad)
