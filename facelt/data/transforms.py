"""From a decoded image to the one that goes into a batch, in the worker, on uint8.

Shapes: H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Resize:
    """The whole image brought to (height, width), its shape given up."""

    image_size: tuple[int, int]

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
        return v2.functional.resize(image_3HW, list(self.image_size), antialias=True).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class _Crop(ABC):
    """A square of `size` that torchvision cuts."""

    size: int = 224
    _transform: v2.Transform = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transform", v2.Compose(self._steps()))

    @abstractmethod
    def _steps(self) -> list[v2.Transform]:
        """How, one after the other."""

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        """Runs under its own seed; the process's random state is as before afterwards."""
        image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(image_3HW).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class TrainCrop(_Crop):
    """OLTR's training augmentation: random resized crop, horizontal flip, colour jitter.

    `jitter` holds brightness, contrast, saturation and hue as torchvision's ColorJitter names them; all 0 is none.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    scale: tuple[float, float] = (0.08, 1.0)

    def _steps(self) -> list[v2.Transform]:
        crop = v2.RandomResizedCrop(self.size, scale=self.scale, antialias=True)
        return [crop, v2.RandomHorizontalFlip(), *([v2.ColorJitter(*self.jitter)] if any(self.jitter) else [])]


@dataclass(frozen=True)
class CentreCrop(_Crop):
    """OLTR's test transform: shorter side to `resize`, then the square of `size` in the centre."""

    resize: int = 256

    def _steps(self) -> list[v2.Transform]:
        return [v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)]
