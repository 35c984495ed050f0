"""From a decoded image to the one that goes into a batch, in the worker, on uint8.

Shapes: H height, W width.

Crops and turns of small images on the device, all images of a batch at once.

Shapes: B images of a batch, H height, W width; y x positions in them.

From the images of a batch to the network's input, on the device.

Shapes: B images of a batch, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.nn.functional import pad
from torchvision.transforms import v2

from facelt.data.decode import UndecodableImage
from facelt.errors import UserError

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
class RandomCropJitter(_Crop):
    """OLTR's training augmentation: random resized crop, horizontal flip, colour jitter.

    `jitter` holds brightness, contrast, saturation and hue as torchvision's ColorJitter names them; all 0 is none.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    scale: tuple[float, float] = (0.08, 1.0)

    def _steps(self) -> list[v2.Transform]:
        crop = v2.RandomResizedCrop(self.size, scale=self.scale, antialias=True)
        return [crop, v2.RandomHorizontalFlip(), *([v2.ColorJitter(*self.jitter)] if any(self.jitter) else [])]


@dataclass(frozen=True)
class CenterCrop(_Crop):
    """OLTR's test transform: shorter side to `resize`, then the square of `size` in the centre."""

    resize: int = 256

    def _steps(self) -> list[v2.Transform]:
        return [v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)]


@dataclass(frozen=True)
class PadCropRotate:
    """CIFAR's augmentation beside the flip: `pad` black pixels all round and a crop of the old size, then a turn by up
    to `rotation` degrees either way about the centre, to the nearest pixel, with black where nothing is.

    It is torchvision's RandomCrop and RandomRotation as one look-up. Everything follows from the draws' seeds.
    """

    pad: int = 0
    rotation: float = 0.0

    @torch.no_grad()
    def __call__(self, image_BHW3: torch.Tensor, seed_B: torch.Tensor) -> torch.Tensor:
        """uint8 [B,H,W,3] and seeds int64 [B] -> uint8 [B,H,W,3]."""
        if not (self.pad or self.rotation):
            return image_BHW3
        height, width = image_BHW3.shape[1:3]
        y_BHW, x_BHW = self._turned(seed_B, height, width)
        inside_BHW = (y_BHW >= 0) & (y_BHW < height) & (x_BHW >= 0) & (x_BHW < width)
        up_B, left_B = (offset_B[:, None, None] for offset_B in self._offsets(seed_B))
        # The border of one pixel is the black that everything outside is sent to.
        y_BHW = (y_BHW + up_B + 1).clamp(0, height + 1).where(inside_BHW, 0)
        x_BHW = (x_BHW + left_B + 1).clamp(0, width + 1).where(inside_BHW, 0)
        place_B11 = torch.arange(len(seed_B), device=seed_B.device)[:, None, None]
        return pad(image_BHW3, (0, 0, 1, 1, 1, 1))[place_B11, y_BHW, x_BHW]

    def _offsets(self, seed_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How far the crop lies below and right of the image, int64 [B] each in -pad..pad.

        Bit 0 of a seed is the flip's (facelt.data.transforms); these are the 32 above it.
        """
        return tuple(((seed_B >> shift & 0xFFFF) * (2 * self.pad + 1) >> 16) - self.pad for shift in (1, 17))

    def _turned(self, seed_B: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the crop each pixel comes from, int64 [B,H,W] each or broadcast to it; it may lie outside."""
        y_H1 = torch.arange(height, device=seed_B.device)[:, None]
        x_1W = torch.arange(width, device=seed_B.device)[None, :]
        if not self.rotation:
            return y_H1.expand(height, width)[None], x_1W.expand(height, width)[None]
        share_B = (seed_B >> 33 & 0xFFFFFF) / 0x1000000
        angle_B11 = ((2 * share_B - 1) * math.radians(self.rotation))[:, None, None]
        cos_B11, sin_B11 = angle_B11.cos(), angle_B11.sin()
        middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
        y_H1, x_1W = y_H1 - middle_y, x_1W - middle_x
        y_BHW = cos_B11 * y_H1 + sin_B11 * x_1W + middle_y
        x_BHW = cos_B11 * x_1W - sin_B11 * y_H1 + middle_x
        return y_BHW.round().long(), x_BHW.round().long()


def flip_mask(seed_B: torch.Tensor) -> torch.Tensor:
    """Which images to mirror, bool [B]: one bit of each draw's seed, which is a hash, so one half of all draws."""
    return (seed_B & 1).bool()


@torch.no_grad()
def normalise_images(
    image_BHW3: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    seed_B: torch.Tensor | None = None,
    *,
    fused: bool = False,
) -> torch.Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in channels-last memory: (pixel / 255 - mean) / std for each channel.

    `mean` and `std` are in units of the full range 1; 0.5 and 0.5 give the (x - 127.5) / 127.5 of face models. With the
    draws' seeds images are mirrored left to right as `flip_mask` says.

    `fused` compiles all of it to one kernel that reads a byte and writes a float for each value, where torch writes a
    mirrored copy and a product in between; the two agree to float32's rounding. It is for GPUs: on a CPU the compiled
    kernel measures seven times slower, for it vectorises over the three channels alone.

    Raises UserError where `fused` is asked for and the kernel cannot be compiled.
    """
    constants = _scale_and_shift(tuple(mean), tuple(std), image_BHW3.device)
    # torch would compile once more for no image and once more for a single one.
    if not fused or len(image_BHW3) < 2:
        return _normalise(image_BHW3, *constants, seed_B)
    try:
        return _compiled()(image_BHW3, *constants, seed_B)
    except TorchDynamoException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise UserError(
            f"data.fused: the kernel for {image_BHW3.device} cannot be compiled here ({reason}); install what is "
            "missing (Triton and a C compiler), or set data.fused=false to run without it"
        ) from None


def _normalise(
    image_BHW3: torch.Tensor, scale_3: torch.Tensor, shift_3: torch.Tensor, seed_B: torch.Tensor | None
) -> torch.Tensor:
    if seed_B is not None:
        image_BHW3 = torch.where(flip_mask(seed_B)[:, None, None, None], image_BHW3.flip(2), image_BHW3)
    return (image_BHW3 * scale_3).sub_(shift_3).permute(0, 3, 1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    """One kernel for batches and images of any size."""
    return torch.compile(_normalise, dynamic=True, fullgraph=True)


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and mean / std, float32 [3]; kept, because a copy to the device at each step would wait for it."""
    mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
    return (1 / (255 * std_3)).to(device), (mean_3 / std_3).to(device)
