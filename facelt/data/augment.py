"""Crops and turns of small images on the device, all images of a batch at once.

Shapes: B images of a batch, H height, W width; y x positions in them.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class ShiftAndTurn:
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

        Bit 0 of a seed is the flip's (facelt.data.normalise); these are the 32 above it.
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
