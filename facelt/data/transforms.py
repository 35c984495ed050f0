"""Image transforms: crops on decoded images in the workers, augmentation and normalisation of batches on the device.

B images of a batch, H height, W width; y and x are positions in them.
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

from facelt.data.batch import Batch
from facelt.data.decode import BadImageError
from facelt.errors import UserError

ImageTransform = Callable[[np.ndarray, int], np.ndarray]
"""(uint8 [H,W,3], seed) -> uint8 [image_size, 3]; equal arguments give equal results. Has `image_size`."""


@dataclass(frozen=True)
class ExpectSize:
    """Identity for images that are stored ready, such as aligned faces; an image of another size is a bad image.

    `remedy` is added to its reason.
    """

    image_size: tuple[int, int]
    remedy: str = ""

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        if image_HW3.shape[:2] != self.image_size:
            actual, expected = ("{} x {}".format(*size) for size in (image_HW3.shape[:2], self.image_size))
            raise BadImageError(f"the image is {actual} pixels (height x width), expected {expected}{self.remedy}")
        return image_HW3


@dataclass(frozen=True)
class Resize:
    """Resizes the whole image to (height, width), unless it has that size; the aspect ratio is not kept."""

    image_size: tuple[int, int]

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        if image_HW3.shape[:2] == self.image_size:
            return image_HW3
        image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
        return v2.functional.resize(image_3HW, list(self.image_size), antialias=True).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class _Crop(ABC):
    """Base of torchvision crops to a square of `size` pixels."""

    size: int = 224
    _transform: v2.Transform = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transform", v2.Compose(self._steps()))

    @abstractmethod
    def _steps(self) -> list[v2.Transform]:
        """Returns torchvision's transforms in order."""

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        """Applies the transforms under their own seed; the global random state stays unchanged."""
        image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(image_3HW).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class RandomCropJitter(_Crop):
    """OLTR's training augmentation: random resized crop, horizontal flip, colour jitter.

    `jitter` holds the brightness, contrast, saturation and hue of torchvision's ColorJitter; all 0 disables it.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    scale: tuple[float, float] = (0.08, 1.0)

    def _steps(self) -> list[v2.Transform]:
        crop = v2.RandomResizedCrop(self.size, scale=self.scale, antialias=True)
        return [crop, v2.RandomHorizontalFlip(), *([v2.ColorJitter(*self.jitter)] if any(self.jitter) else [])]


@dataclass(frozen=True)
class CenterCrop(_Crop):
    """OLTR's test transform: resizes the shorter side to `resize`, then crops the square of `size` at the centre."""

    resize: int = 256

    def _steps(self) -> list[v2.Transform]:
        return [v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)]


@dataclass(frozen=True)
class PadCropRotate:
    """CIFAR's augmentation on the device, except the flip, determined by the request seeds.

    Pads by `pad` black pixels, crops to the old size, then rotates about the centre by up to `rotation` degrees in
    either direction (nearest pixel, black fill): torchvision's RandomCrop and RandomRotation as one look-up.
    """

    pad: int = 0
    rotation: float = 0.0

    @torch.no_grad()
    def __call__(self, image_BHW3: torch.Tensor, seed_B: torch.Tensor) -> torch.Tensor:
        """Transforms uint8 [B,H,W,3] by seeds int64 [B]; returns uint8 [B,H,W,3]."""
        if not (self.pad or self.rotation):
            return image_BHW3
        height, width = image_BHW3.shape[1:3]
        y_BHW, x_BHW = self._rotated_positions(seed_B, height, width)
        inside_BHW = (y_BHW >= 0) & (y_BHW < height) & (x_BHW >= 0) & (x_BHW < width)
        up_B, left_B = (offset_B[:, None, None] for offset_B in self._offsets(seed_B))
        # Positions outside are mapped to a border of one black pixel.
        y_BHW = (y_BHW + up_B + 1).clamp(0, height + 1).where(inside_BHW, 0)
        x_BHW = (x_BHW + left_B + 1).clamp(0, width + 1).where(inside_BHW, 0)
        row_B11 = torch.arange(len(seed_B), device=seed_B.device)[:, None, None]
        return pad(image_BHW3, (0, 0, 1, 1, 1, 1))[row_B11, y_BHW, x_BHW]

    def _offsets(self, seed_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the crop's offsets down and right from the image, int64 [B] each in -pad..pad.

        Bits 1 to 32 of the seed; bit 0 decides the flip (`flip_mask`).
        """
        return tuple(((seed_B >> shift & 0xFFFF) * (2 * self.pad + 1) >> 16) - self.pad for shift in (1, 17))

    def _rotated_positions(self, seed_B: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each pixel's source position in the crop, int64, broadcastable to [B,H,W]; it may lie outside."""
        y_H1 = torch.arange(height, device=seed_B.device)[:, None]
        x_1W = torch.arange(width, device=seed_B.device)[None, :]
        if not self.rotation:
            return y_H1.expand(height, width)[None], x_1W.expand(height, width)[None]
        fraction_B = (seed_B >> 33 & 0xFFFFFF) / 0x1000000
        angle_B11 = ((2 * fraction_B - 1) * math.radians(self.rotation))[:, None, None]
        cos_B11, sin_B11 = angle_B11.cos(), angle_B11.sin()
        middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
        y_H1, x_1W = y_H1 - middle_y, x_1W - middle_x
        y_BHW = cos_B11 * y_H1 + sin_B11 * x_1W + middle_y
        x_BHW = cos_B11 * x_1W - sin_B11 * y_H1 + middle_x
        return y_BHW.round().long(), x_BHW.round().long()


@dataclass(frozen=True)
class Preprocessing:
    """Turns uint8 batches into network input, normalised by `mean` and `std`.

    `augment` and `flip` change training images by their request seeds. On GPUs flips and normalisation run as one
    kernel if `fused`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fused: bool = True
    flip: bool = False
    augment: PadCropRotate | None = None

    def for_training(self, batch: Batch) -> torch.Tensor:
        """Returns the network input float32 [B,3,H,W], augmented."""
        image_BHW3 = batch.image_BHW3 if self.augment is None else self.augment(batch.image_BHW3, batch.seed_B)
        return self._normalise(image_BHW3, batch.seed_B if self.flip else None)

    def for_evaluation(self, batch: Batch) -> torch.Tensor:
        """Returns the network input float32 [B,3,H,W], not augmented."""
        return self._normalise(batch.image_BHW3, None)

    def _normalise(self, image_BHW3: torch.Tensor, seed_B: torch.Tensor | None) -> torch.Tensor:
        return normalise_images(image_BHW3, self.mean, self.std, seed_B, fused=self.fused and image_BHW3.is_cuda)


def flip_mask(seed_B: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the images to mirror, bool [B]: bit 0 of each request seed, which is a hash."""
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
    """Returns (pixel / 255 - mean) / std per channel: uint8 [B,H,W,3] -> float32 [B,3,H,W], channels-last.

    `mean` and `std` are fractions of the full range; 0.5 and 0.5 give the (x - 127.5) / 127.5 of face models. With the
    request seeds, images are mirrored left to right by `flip_mask`.

    `fused` compiles everything to one kernel without intermediate copies; results agree to float32 rounding. Use it on
    GPUs only: on a CPU the compiled kernel is seven times slower, since it vectorises over the three channels.

    Raises UserError if `fused` is set and the kernel cannot be compiled.
    """
    constants = _scale_and_shift(tuple(mean), tuple(std), image_BHW3.device)
    # torch would recompile for an empty batch and for a single image.
    if not fused or len(image_BHW3) < 2:
        return _normalise(image_BHW3, *constants, seed_B)
    try:
        return _compiled()(image_BHW3, *constants, seed_B)
    except TorchDynamoException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise UserError(
            f"data.fused: the kernel for {image_BHW3.device} cannot be compiled ({reason}); install Triton and a C "
            "compiler, or set data.fused=false"
        ) from None


def _normalise(
    image_BHW3: torch.Tensor, scale_3: torch.Tensor, shift_3: torch.Tensor, seed_B: torch.Tensor | None
) -> torch.Tensor:
    if seed_B is not None:
        image_BHW3 = torch.where(flip_mask(seed_B)[:, None, None, None], image_BHW3.flip(2), image_BHW3)
    return (image_BHW3 * scale_3).sub_(shift_3).permute(0, 3, 1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    """One kernel for all batch and image sizes."""
    return torch.compile(_normalise, dynamic=True, fullgraph=True)


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and mean / std, float32 [3] each; cached, so that a run copies them once."""
    mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
    return tuple(value_3.to(device, non_blocking=True) for value_3 in (1 / (255 * std_3), mean_3 / std_3))
