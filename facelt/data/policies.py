"""Augmentation of small images by policy: AutoAugment, RandAugment, Cutout.

H height and W width of an image.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torchvision.transforms import v2

from facelt.config.base import StrictModel
from facelt.data.transforms import ImageTransform, PadCropRotate

_GREY = 128
"""Of the pixels that a rotation, shear or shift brings in, as in the papers on both policies."""


class PolicySettings(StrictModel):
    """Random changes of small training images, after crop, rotation and flip: a `policy`, then `cutout`.

    `policy: autoaugment` is AutoAugment's policy for CIFAR (Cubuk et al., CVPR 2019), `randaugment` makes `operations`
    random changes of the strength `magnitude`, up to 30 (Cubuk et al., NeurIPS 2020); both are torchvision's. `cutout`
    is the side, in pixels, of a square of the mean colour at a random place, part of which may lie outside the image
    (DeVries and Taylor, 2017; they use 16 on CIFAR-10 and 8 on CIFAR-100); 0 is none.
    """

    policy: Literal["autoaugment", "randaugment"] | None = None
    operations: int = Field(2, ge=1, le=14)
    magnitude: int = Field(9, ge=0, le=30)
    cutout: int = Field(0, ge=0, le=4096)

    @model_validator(mode="after")
    def _changes_images(self) -> "PolicySettings":
        if self.policy is None and not self.cutout:
            raise ValueError("augment: changes nothing; set policy or cutout, or remove the section")
        return self


@dataclass(frozen=True)
class PolicyAugmentation:
    """Crop, rotation and flip as on the device, then the policy, then Cutout with the colour `mean` (0 to 1).

    This is the order of the papers, so crop and flip are made here, image by image, and not for the batch. `plain` is
    the transform of evaluation.
    """

    settings: PolicySettings
    plain: ImageTransform
    crop: PadCropRotate
    flip: bool
    mean: tuple[float, float, float]
    _policy: v2.Transform | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        policy = None
        if self.settings.policy == "autoaugment":
            policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=_GREY)
        elif self.settings.policy == "randaugment":
            policy = v2.RandAugment(self.settings.operations, self.settings.magnitude, fill=_GREY)
        object.__setattr__(self, "_policy", policy)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.plain.image_size

    def __call__(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        """Changes an image by its seed; the global random state stays unchanged. Raises BadImageError as `plain`."""
        image_1HW3 = torch.from_numpy(self.plain(image_HW3, seed))[None]
        changed_HW3 = self.crop(image_1HW3, torch.tensor([seed]))[0]
        if self.flip and seed & 1:
            changed_HW3 = changed_HW3.flip(1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            # First, so that the place does not depend on the policy.
            centre = torch.rand(2).tolist()
            if self._policy is not None:
                changed_HW3 = self._policy(changed_HW3.permute(2, 0, 1)).permute(1, 2, 0)
        # A copy: without crop and flip it may still be the image that was read.
        copied_HW3 = changed_HW3.numpy().copy()
        if self.settings.cutout:
            cut_out(copied_HW3, self.settings.cutout, centre, self.mean)
        return copied_HW3


def cut_out(image_HW3: np.ndarray, side: int, centre: tuple[float, float], mean: tuple[float, float, float]) -> None:
    """Fills a square in place; its `centre` is (down, right) as fractions of the image, the rest is cut off."""
    slices = []
    for fraction, length in zip(centre, image_HW3.shape, strict=False):
        first = int(fraction * length) - side // 2
        slices.append(slice(max(first, 0), max(first + side, 0)))
    image_HW3[tuple(slices)] = np.rint(255 * np.array(mean)).astype(np.uint8)
