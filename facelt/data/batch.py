"""Sample requests, samples, batches, and the count of bad images.

B images of a batch, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from facelt.errors import UserError


class SampleRequest(NamedTuple):
    """A request for one image: its index in the dataset, and the seed of its random augmentation."""

    index: int
    seed: int


class SampleRequests(NamedTuple):
    """Requests for the images of one step or epoch: dataset indices and seeds, int64 [B] each."""

    index_B: np.ndarray
    seed_B: np.ndarray


class Sample(NamedTuple):
    """A decoded image, uint8 [H,W,3] RGB, with its label (-1: open set or unlabelled) and its request."""

    image_HW3: np.ndarray
    label: int
    index: int
    seed: int


class BadImage(NamedTuple):
    """An unusable image: its name (record file and key, or path) and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Images of one step, uint8 [B,H,W,3] RGB, with labels, dataset indices and request seeds, int64 [B] each.

    Bad images are left out, so B is smaller than the number of requests by their number, and may be 0.
    """

    image_BHW3: torch.Tensor
    label_B: torch.Tensor
    index_B: torch.Tensor
    seed_B: torch.Tensor
    bad_images: tuple[BadImage, ...] = ()

    def __len__(self) -> int:
        return len(self.label_B)

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory."""
        return self._map_tensors(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device; copies from page-locked memory do not block."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _map_tensors(self, function) -> "Batch":
        names = ("image_BHW3", "label_B", "index_B", "seed_B")
        return replace(self, **{name: function(getattr(self, name)) for name in names})


class FilledBatch(NamedTuple):
    """A batch without its pixels, which lie in the first B rows of a buffer; small enough for a worker to send.

    Labels, dataset indices and request seeds of the B images, int64 [B] each, and the bad images.
    """

    label_B: np.ndarray
    index_B: np.ndarray
    seed_B: np.ndarray
    bad_images: tuple[BadImage, ...]

    def batch(self, image_BHW3: torch.Tensor) -> Batch:
        """Returns the batch whose pixels lie in this buffer, without a copy."""
        columns = (torch.from_numpy(column) for column in (self.label_B, self.index_B, self.seed_B))
        return Batch(image_BHW3[: len(self.label_B)], *columns, self.bad_images)


_MAX_NAMED = 5


class BadImageTracker:
    """Counts distinct bad images over a run; one that recurs in a later epoch counts once.

    `setting` is the key that raises `limit`.
    """

    def __init__(self, limit: int, setting: str = "data.max_bad_images") -> None:
        self.limit = limit
        self.setting = setting
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, bad_images: Iterable[BadImage]) -> tuple[BadImage, ...]:
        """Counts the bad images of a batch; returns the new ones, so that each is reported once.

        Raises UserError when more than `limit` distinct images were bad, naming the first few.
        """
        new = tuple(item for item in dict(bad_images).items() if item[0] not in self.reasons)
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:_MAX_NAMED])
            rest = len(self.reasons) - _MAX_NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            raise UserError(
                f"{len(self.reasons)} images cannot be used, {self.setting} allows {self.limit}: {first}{more}"
            )
        return tuple(BadImage(*item) for item in new)
