"""From a decoded image to the model's input: in the worker on uint8, and on the device for the whole batch at once.

Shapes: B images of a batch, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms import v2

from facelt.data.decode import UndecodableImage

ImageTransform = Callable[[np.ndarray, int], np.ndarray]
"""(uint8 [H,W,3], seed) -> uint8 [image_size, 3]; equal arguments give equal results. Has `image_size`."""


@dataclass(frozen=True)
class ExpectSize:
    """No change: images that are ready as they are, such as aligned faces; another size makes an image a bad one."""

    image_size: tuple[int, int]

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        if image_HW3.shape[:2] != self.image_size:
            found, wanted = ("{} x {}".format(*size) for size in (image_HW3.shape[:2], self.image_size))
            raise UndecodableImage(f"the image is {found} pixels (height x width), this data set's are {wanted}")
        return image_HW3


def _apply(transform: v2.Transform, image_HW3: np.ndarray, seed: int) -> np.ndarray:
    """Run a torchvision transform under its own seed; the process's random state is as before afterwards."""
    image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image_3HW).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class TrainCrop:
    """OLTR's training augmentation: random resized crop, horizontal flip, colour jitter.

    `jitter` holds brightness, contrast, saturation and hue as torchvision's ColorJitter names them; all 0 is none.
    """

    size: int = 224
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    scale: tuple[float, float] = (0.08, 1.0)
    _transform: v2.Transform = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = [v2.RandomResizedCrop(self.size, scale=self.scale, antialias=True), v2.RandomHorizontalFlip()]
        if any(self.jitter):
            steps.append(v2.ColorJitter(*self.jitter))
        object.__setattr__(self, "_transform", v2.Compose(steps))

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        return _apply(self._transform, image_HW3, seed)


@dataclass(frozen=True)
class CentreCrop:
    """OLTR's test transform: shorter side to `resize`, then the square of `size` in the centre."""

    size: int = 224
    resize: int = 256
    _transform: v2.Transform = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = [v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)]
        object.__setattr__(self, "_transform", v2.Compose(steps))

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        return _apply(self._transform, image_HW3, seed)


def flip_mask(seed_B: torch.Tensor) -> torch.Tensor:
    """Which images to mirror, bool [B]: one bit of each draw's seed, which is a hash, so one half of all draws."""
    return (seed_B & 1).bool()


def to_float(
    image_BHW3: torch.Tensor, mean: Sequence[float], std: Sequence[float], flip_B: torch.Tensor | None = None
) -> torch.Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in channels-last memory: (pixel / 255 - mean) / std for each channel.

    `mean` and `std` are in units of the full range 1; 0.5 and 0.5 give the (x - 127.5) / 127.5 of face models. Images
    where `flip_B` is true are mirrored left to right.
    """
    if flip_B is not None:
        image_BHW3 = torch.where(flip_B[:, None, None, None], image_BHW3.flip(2), image_BHW3)
    scale_3, shift_3 = _scale_and_shift(tuple(mean), tuple(std), image_BHW3.device)
    return (image_BHW3 * scale_3).sub_(shift_3).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and mean / std, float32 [3]; kept, because a copy to the device at each step would wait for it."""
    mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
    return (1 / (255 * std_3)).to(device), (mean_3 / std_3).to(device)
