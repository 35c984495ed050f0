"""CAM-based sampling: images of rare classes with a transformed foreground (Zhang et al., AAAI 2021).

Shapes: B images of this rank, C classes, D feature and map channels, H W image.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.base import StrictModel
from facelt.distributed.comm import all_reduce
from facelt.errors import UserError
from facelt.heads.classifiers import LinearHead
from facelt.methods.base import Method, TrainBatch
from facelt.models.layers import GlobalAveragePool, class_activation_map, foreground_mask

_MAX_ROTATION = 45.0  # degrees
_SCALES = (0.8, 1.2)


class ForegroundSettings(StrictModel):
    """Generates images until all classes have equal size.

    With a `threshold`, classes with at least that many training images get none, and no class gets more than that.
    """

    threshold: int | None = Field(None, ge=1)


def generated_fractions(counts_C: torch.Tensor, threshold: int | None) -> torch.Tensor:
    """Returns the generated fraction of each class, g / (n + g), float32 [C], with g = n_max + n_min - n.

    For `threshold` see `ForegroundSettings`.
    """
    generated_C = counts_C.max() + counts_C[counts_C > 0].min() - counts_C
    if threshold is not None:
        generated_C = torch.where(counts_C >= threshold, 0, generated_C.clamp_max(threshold))
    return generated_C / (counts_C + generated_C)


class ForegroundTransform(nn.Module):
    """Replaces images by transformed ones, with the class frequencies of a training set extended by such images.

    The foreground is where a trained linear classifier's activation map of the target class is high. It is transformed
    in one of three equally likely ways: rotated by up to 45 degrees about its centre and scaled by 0.8 to 1.2, shifted
    within the frame, or mirrored with the frame. As in the authors' code, the transformed image fills the region that
    the foreground leaves. Their code generates the images once before training; here each time an image is drawn it may
    be transformed differently, after the other augmentations.
    """

    def __init__(self, counts_C: torch.Tensor | None, threshold: int | None) -> None:
        super().__init__()
        fraction_C = None if counts_C is None else generated_fractions(counts_C, threshold)
        self.register_buffer("fraction_C", fraction_C, persistent=False)
        self.register_buffer("weight_CD", None, persistent=False)

    @torch.no_grad()
    def set_teacher(self, teacher: Method) -> None:
        """Copies the teacher's classifier, all classes on every rank.

        Raises UserError if it is not a linear classifier on the averaged feature map.
        """
        head = getattr(teacher, "head", None)
        if not isinstance(head, LinearHead) or not isinstance(teacher.network.embedding, GlobalAveragePool):
            raise UserError(
                "teachers: move_foreground needs a linear classifier on the averaged map; "
                "train the teacher's stage with the method classify, head: linear and embedding: none"
            )
        rows = slice(head.classes.first, head.classes.stop)
        self.weight_CD = head.weight.new_zeros(head.classes.total, teacher.dim)
        self.weight_CD[rows] = head.weight
        all_reduce(self.weight_CD, dist.ReduceOp.SUM)

    @torch.no_grad()
    def forward(self, batch: TrainBatch, teacher: Method, generator: torch.Generator) -> TrainBatch:
        """Returns the batch with some images replaced; `generator` is on its device.

        All images are transformed: the host does not know which ones are chosen.
        """
        image_B3HW, label_B = batch
        if not len(label_B):
            return batch
        draw_6B = torch.rand(6, len(label_B), generator=generator, device=label_B.device)
        foreground_BHW = self._foreground(teacher, image_B3HW, label_B)
        moved_B3HW = transform_foreground(image_B3HW, foreground_BHW, sampling_maps(foreground_BHW, draw_6B[1:]))
        is_chosen_B = draw_6B[0] < self.fraction_C[label_B]
        return TrainBatch(torch.where(is_chosen_B[:, None, None, None], moved_B3HW, image_B3HW), label_B)

    def _foreground(self, teacher: Method, image_B3HW: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image_B3HW.device.type, torch.bfloat16, enabled=teacher.bf16):
            map_BDhw = teacher.network.attention(teacher.network.backbone(image_B3HW))
        return foreground_mask(class_activation_map(map_BDhw.float(), self.weight_CD[label_B]), image_B3HW.shape[2:])


def sampling_maps(foreground_BHW: torch.Tensor, draw_5B: torch.Tensor) -> torch.Tensor:
    """Returns affine maps from (x, y, 1) of the transformed image to pixels of the original, [B,2,3].

    The draws are uniform in [0, 1): kind of transform, rotation, scale, and the shifts in x and y.
    """
    (left_B, right_B), (top_B, bottom_B) = (_extent(foreground_BHW.any(dim)) for dim in (1, 2))
    height, width = foreground_BHW.shape[1:]
    kind_B = (3 * draw_5B[0]).long()
    one_B, zero_B = torch.ones_like(draw_5B[0]), torch.zeros_like(draw_5B[0])

    rotation_B = math.radians(_MAX_ROTATION) * (2 * draw_5B[1] - 1)
    scale_B = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * draw_5B[2]
    center_x_B, center_y_B = (left_B + right_B) / 2, (top_B + bottom_B) / 2
    cos_B, sin_B = rotation_B.cos() / scale_B, rotation_B.sin() / scale_B
    rotated = (
        (cos_B, sin_B, center_x_B - cos_B * center_x_B - sin_B * center_y_B),
        (-sin_B, cos_B, center_y_B + sin_B * center_x_B - cos_B * center_y_B),
    )
    # Integer shifts that keep the bounding box of the foreground in the frame.
    shift_x_B = (draw_5B[3] * (width - (right_B - left_B))).floor() - left_B
    shift_y_B = (draw_5B[4] * (height - (bottom_B - top_B))).floor() - top_B
    shifted = ((one_B, zero_B, -shift_x_B), (zero_B, one_B, -shift_y_B))
    mirrored = ((-one_B, zero_B, (width - 1) * one_B), (zero_B, one_B, zero_B))

    maps_3B23 = torch.stack(
        [torch.stack([torch.stack(row, 1) for row in matrix], 1) for matrix in (rotated, shifted, mirrored)]
    )
    return maps_3B23[kind_B, torch.arange(len(kind_B), device=kind_B.device)]


def _extent(mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first and the last true index, [B] each."""
    mask_BL = mask_BL.long()
    return mask_BL.argmax(1), mask_BL.shape[1] - 1 - mask_BL.flip(1).argmax(1)


def transform_foreground(image_B3HW: torch.Tensor, foreground_BHW: torch.Tensor, map_B23: torch.Tensor) -> torch.Tensor:
    """Returns the images with a transformed foreground, [B,3,H,W]; pixels mapped from outside the frame stay as is."""
    height, width = foreground_BHW.shape[1:]
    size_2 = torch.stack([map_B23.new_full((), length) for length in (width, height)])
    # From pixels to the coordinates of affine_grid, which span -1 to 1 between the outer edges of the pixels.
    linear_B22 = map_B23[:, :, :2] * (size_2 / size_2[:, None])
    offset_B2 = (map_B23[:, :, :2] @ (size_2 - 1) + 2 * map_B23[:, :, 2] + 1) / size_2 - 1
    theta_B23 = torch.cat([linear_B22, offset_B2[:, :, None]], 2)
    grid_BHW2 = F.affine_grid(theta_B23, [len(image_B3HW), 1, height, width], align_corners=False)
    moved_B3HW = F.grid_sample(image_B3HW, grid_BHW2, padding_mode="border", align_corners=False)
    arrived_B1HW = F.grid_sample(foreground_BHW[:, None].float(), grid_BHW2, mode="nearest", align_corners=False) > 0.5
    inside_BHW = (grid_BHW2.abs() <= 1).all(dim=3)
    return torch.where(arrived_B1HW | (foreground_BHW & inside_BHW)[:, None], moved_B3HW, image_B3HW)
