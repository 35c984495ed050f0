"""What travels from a dataset to the model: one draw in, one sample or bad image out, many of them in a batch.

Shapes: B images of a batch, H height, W width.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch


class Draws(NamedTuple):
    """The images asked for in one step: dataset indices and seeds, int64 [B] each."""

    index_B: np.ndarray
    seed_B: np.ndarray


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
        """A copy in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; copies from page-locked memory do not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change) -> "Batch":
        names = ("image_BHW3", "label_B", "index_B", "seed_B")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


class Filled(NamedTuple):
    """What came of the draws of one step, without the pixels: those lie in the first B rows of the memory given.

    Label, dataset index and seed of the images there, int64 [B] each; and what was left out. It is small, so a worker
    sends it as it is.
    """

    label_B: np.ndarray
    index_B: np.ndarray
    seed_B: np.ndarray
    bad: tuple[BadImage, ...]

    def batch(self, image_BHW3: torch.Tensor) -> Batch:
        """The batch whose pixels lie there; nothing is copied."""
        columns = (torch.from_numpy(column) for column in (self.label_B, self.index_B, self.seed_B))
        return Batch(image_BHW3[: len(self.label_B)], *columns, self.bad)
