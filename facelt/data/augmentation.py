"""Face augmentation: AdaFace's crop, low resolution and photometric jitter; rotation and shift; random erasing.

H height and W width of an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field, field_validator

from facelt.config.base import Fraction, StrictModel
from facelt.data.decode import BadImageError
from facelt.data.transforms import ImageTransform

_PositiveFraction = Annotated[float, Field(gt=0, le=1)]
_Aspect = Annotated[float, Field(gt=0)]
_Strength = Annotated[float, Field(ge=0)]


class AugmentationSettings(StrictModel):
    """Random changes of training images; the defaults are those of AdaFace (Kim et al., CVPR 2022, released code).

    `crop`, `low_resolution`, `photometric`, `geometric` and `erasing` are the probabilities of five independent
    changes; 0 switches one off. The other keys limit what is drawn for a change.

    `crop` keeps a box of the image and blackens the rest: `crop_area` is its fraction of the image, `crop_aspect` its
    width over its height. `low_resolution` scales both sides down to `low_resolution_scale` of the network's input and
    up again, each with a random interpolation. `photometric` changes brightness, contrast and saturation, in random
    order, by factors of up to `brightness`, `contrast` and `saturation` above or below 1. `geometric` rotates by up to
    `rotation` degrees and shifts by up to `shift` of the height and of the width, in either direction, with a black
    fill. `erasing` replaces a box of `erasing_area` and `erasing_aspect` by random pixels (Zhong et al., AAAI 2020).
    """

    crop: Fraction = 0.2
    crop_area: tuple[_PositiveFraction, _PositiveFraction] = (0.2, 1.0)
    crop_aspect: tuple[_Aspect, _Aspect] = (0.75, 1.3333)
    low_resolution: Fraction = 0.2
    low_resolution_scale: tuple[_PositiveFraction, _PositiveFraction] = (0.2, 1.0)
    photometric: Fraction = 0.2
    brightness: _Strength = 0.5
    contrast: _Strength = 0.5
    saturation: _Strength = 0.5
    geometric: Fraction = 0.0
    rotation: float = Field(10.0, ge=0, le=180)
    shift: Fraction = 0.05
    erasing: Fraction = 0.0
    erasing_area: tuple[_PositiveFraction, _PositiveFraction] = (0.02, 0.4)
    erasing_aspect: tuple[_Aspect, _Aspect] = (0.3, 3.3333)

    @field_validator("crop_area", "crop_aspect", "low_resolution_scale", "erasing_area", "erasing_aspect")
    @classmethod
    def _is_ascending(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError(f"the lower limit {limits[0]:g} comes first, then the upper one; exchange them")
        return limits


@dataclass(frozen=True)
class FaceAugmentation:
    """Random changes before and after `plain`, the transform of evaluation, which makes the network's input size.

    Rotation and shift, which interpolate, act on the stored image. The others act on the resized one, so that low
    resolution has fewer pixels than the network sees.
    """

    settings: AugmentationSettings
    plain: ImageTransform

    @property
    def image_size(self) -> tuple[int, int]:
        return self.plain.image_size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        """Changes an image by a random generator of that seed. Raises BadImageError as `plain` does."""
        settings, random = self.settings, np.random.default_rng(seed)
        # Also drawn for changes that are off, so that switching one on keeps the images that the others change.
        geometric, crop, low_resolution, photometric, erasing = random.random(5).tolist()
        if settings.geometric:
            _check_sides(image_HW3)
        if geometric < settings.geometric:
            image_HW3 = rotate_and_shift(image_HW3, settings, random)
        image_HW3 = self.plain(image_HW3, seed)
        if crop < settings.crop:
            image_HW3 = keep_box(image_HW3, settings, random)
        if low_resolution < settings.low_resolution:
            image_HW3 = lower_resolution(image_HW3, settings, random)
        if photometric < settings.photometric:
            image_HW3 = jitter_colours(image_HW3, settings, random)
        if erasing < settings.erasing:
            image_HW3 = erase_box(image_HW3, settings, random)
        return image_HW3


_MAX_SIDE = 32_766  # of cv2.warpAffine


def _check_sides(image_HW3: np.ndarray) -> None:
    height, width = image_HW3.shape[:2]
    if max(height, width) > _MAX_SIDE:
        raise BadImageError(f"the image is {height} x {width} pixels; rotation allows {_MAX_SIDE} a side")


def rotate_and_shift(image_HW3: np.ndarray, settings: AugmentationSettings, random: np.random.Generator) -> np.ndarray:
    """Rotates about the centre, then shifts, as one bilinear look-up with a black fill: uint8 [H,W,3] -> [H,W,3]."""
    height, width = image_HW3.shape[:2]
    angle, down, right = random.uniform(-1, 1, 3)
    matrix_23 = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle * settings.rotation, 1.0)
    matrix_23[:, 2] += settings.shift * right * width, settings.shift * down * height
    return cv2.warpAffine(image_HW3, matrix_23, (width, height), flags=cv2.INTER_LINEAR)


def keep_box(image_HW3: np.ndarray, settings: AugmentationSettings, random: np.random.Generator) -> np.ndarray:
    """Blackens all but a box of RandomResizedCrop, which stays at its place and size: uint8 [H,W,3] -> [H,W,3]."""
    rows, columns = _random_box(image_HW3, settings.crop_area, settings.crop_aspect, random)
    kept_HW3 = np.zeros_like(image_HW3)
    kept_HW3[rows, columns] = image_HW3[rows, columns]
    return kept_HW3


def erase_box(image_HW3: np.ndarray, settings: AugmentationSettings, random: np.random.Generator) -> np.ndarray:
    """Replaces a box by uniformly random pixels: uint8 [H,W,3] -> [H,W,3]."""
    rows, columns = _random_box(image_HW3, settings.erasing_area, settings.erasing_aspect, random)
    erased_HW3 = image_HW3.copy()
    erased_HW3[rows, columns] = random.integers(0, 256, erased_HW3[rows, columns].shape, np.uint8)
    return erased_HW3


_TRIES = 10


def _random_box(
    image_HW3: np.ndarray, area: tuple[float, float], aspect: tuple[float, float], random: np.random.Generator
) -> tuple[slice, slice]:
    """Returns the rows and columns of a box: area uniform, aspect log-uniform, then its place uniform.

    As in torchvision's RandomResizedCrop area and aspect are drawn up to ten times until the box fits. The last one is
    cut to the image.
    """
    height, width = image_HW3.shape[:2]
    for _ in range(_TRIES):
        pixels = random.uniform(*area) * height * width
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            break
    rows, columns = min(max(rows, 1), height), min(max(columns, 1), width)
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    return slice(top, top + rows), slice(left, left + columns)


INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def lower_resolution(image_HW3: np.ndarray, settings: AugmentationSettings, random: np.random.Generator) -> np.ndarray:
    """Scales down and up again, each with one of five interpolations: uint8 [H,W,3] -> [H,W,3]."""
    height, width = image_HW3.shape[:2]
    scale = random.uniform(*settings.low_resolution_scale)
    down, up = (INTERPOLATIONS[choice] for choice in random.integers(len(INTERPOLATIONS), size=2))
    small_hw3 = cv2.resize(image_HW3, (max(int(scale * width), 1), max(int(scale * height), 1)), interpolation=down)
    return cv2.resize(small_hw3, (width, height), interpolation=up)


def jitter_colours(image_HW3: np.ndarray, settings: AugmentationSettings, random: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast and saturation in random order: uint8 RGB [H,W,3] -> [H,W,3].

    The formulas are those of torchvision's ColorJitter, rounded to the nearest value after each of the three.
    """
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    factors = [random.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    for number in random.permutation(3):
        image_HW3 = _COLOUR_CHANGES[number](image_HW3, factors[number])
    return image_HW3


def _change_brightness(image_HW3: np.ndarray, factor: float) -> np.ndarray:
    return _scale_values(image_HW3, factor, 0.0)


def _change_contrast(image_HW3: np.ndarray, factor: float) -> np.ndarray:
    """Moves all values away from the mean of the grey image."""
    mean = cv2.mean(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY))[0]
    return _scale_values(image_HW3, factor, (1 - factor) * mean)


def _change_saturation(image_HW3: np.ndarray, factor: float) -> np.ndarray:
    """Moves all values away from the grey value of their pixel."""
    return cv2.transform(image_HW3, factor * np.eye(3) + (1 - factor) * _LUMA_3)


def _scale_values(image_HW3: np.ndarray, factor: float, offset: float) -> np.ndarray:
    values_V = np.arange(256) * factor + offset
    return cv2.LUT(image_HW3, np.clip(np.rint(values_V), 0, 255).astype(np.uint8))


_LUMA_3 = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601
_COLOUR_CHANGES: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (
    _change_brightness,
    _change_contrast,
    _change_saturation,
)
