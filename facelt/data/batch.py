"""What travels from a dataset to the model: one draw in, one sample or bad image out, many of them in a batch.

Shapes: B images of a batch, H height, W width.

How many images a run may lose before it stops.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from facelt.errors import UserError


class SampleRequests(NamedTuple):
    """The images asked for in one step: dataset indices and seeds, int64 [B] each."""

    index_B: np.ndarray
    seed_B: np.ndarray


class SampleRequest(NamedTuple):
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


class FilledBatch(NamedTuple):
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


_NAMED = 5


class BadImageTracker:
    """Counts distinct unusable images over a run; an image met again in a later epoch counts once.

    `setting` is what a user changes to allow more than `limit`.
    """

    def __init__(self, limit: int, setting: str = "data.max_bad_images") -> None:
        self.limit = limit
        self.setting = setting
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, bad: Iterable[BadImage]) -> tuple[BadImage, ...]:
        """Take the bad images of a batch; returns those not met before, so that each is reported once.

        Raises UserError when more than `limit` different images were bad, naming the first few.
        """
        new = tuple(item for item in dict(bad).items() if item[0] not in self.reasons)
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:_NAMED])
            rest = len(self.reasons) - _NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            raise UserError(
                f"{len(self.reasons)} images cannot be used, {self.setting} allows {self.limit}: {first}{more}"
            )
        return tuple(BadImage(*item) for item in new)
