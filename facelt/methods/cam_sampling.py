"""CAM-based sampling: of rare classes, images whose foreground has moved stand beside the original ones.

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

TURN = 45.0
SCALE = (0.8, 1.2)


class ForegroundSettings(StrictModel):
    """Images of rare classes with their foreground moved, as many as bring every class to one size.

    With a `threshold` classes of as many training images have none, and no class more than that.
    """

    threshold: int | None = Field(None, ge=1)


def generated_shares(counts_C: torch.Tensor, threshold: int | None) -> torch.Tensor:
    """How much of each class is generated, g / (n + g), float32 [C]: g = n_max + n_min - n brings all to one size.

    With a threshold, classes of as many images and more get none, and no class gets more than that.
    """
    made_C = counts_C.max() + counts_C[counts_C > 0].min() - counts_C
    if threshold is not None:
        made_C = torch.where(counts_C >= threshold, 0, made_C.clamp_max(threshold))
    return made_C / (counts_C + made_C)


class ForegroundMoves(nn.Module):
    """Replaces images by ones with their foreground elsewhere, each class as often as a set with those added would.

    What is foreground says a trained linear classifier's activation map of the own class. It is moved in one of three
    ways, each as likely: turned by up to 45 degrees about its middle and scaled by 0.8 to 1.2, shifted within the
    frame, or mirrored with the frame. Source: Zhang et al., Bag of Tricks for Long-Tailed Visual Recognition, AAAI
    2021. As in their code the place it leaves is filled by what the move brings there. Their code draws the images
    once, before the stage; here each look at an image may have a move of its own, after the other augmentations.
    """

    def __init__(self, counts_C: torch.Tensor | None, threshold: int | None) -> None:
        super().__init__()
        share_C = None if counts_C is None else generated_shares(counts_C, threshold)
        self.register_buffer("share_C", share_C, persistent=False)
        self.register_buffer("weight_CD", None, persistent=False)

    @torch.no_grad()
    def set_teacher(self, teacher: Method) -> None:
        """Takes the teacher's classifier, on each rank whole.

        Raises UserError where the classifier does not read the averaged map.
        """
        head = getattr(teacher, "head", None)
        if not isinstance(head, LinearHead) or not isinstance(teacher.network.embedding, GlobalAveragePool):
            raise UserError(
                "teachers: move_foreground asks for a linear classifier on the averaged map; "
                "train the teacher's stage with the method classify, head: linear and embedding: none"
            )
        rows = slice(head.classes.first, head.classes.stop)
        self.weight_CD = head.weight.new_zeros(head.classes.total, teacher.dim)
        self.weight_CD[rows] = head.weight
        all_reduce(self.weight_CD, dist.ReduceOp.SUM)

    @torch.no_grad()
    def forward(self, batch: TrainBatch, teacher: Method, generator: torch.Generator) -> TrainBatch:
        """The batch with some of its images replaced; the draws are from a generator of the CPU."""
        image_B3HW, label_B = batch
        draw_6B = torch.rand(6, len(label_B), generator=generator).to(image_B3HW.device)
        chosen_K = (draw_6B[0] < self.share_C[label_B]).nonzero().squeeze(1)
        if not len(chosen_K):
            return batch
        image_K3HW = image_B3HW[chosen_K]
        shown_KHW = self._foreground(teacher, image_K3HW, label_B[chosen_K])
        replaced_B3HW = image_B3HW.clone()
        replaced_B3HW[chosen_K] = move(image_K3HW, shown_KHW, sources(shown_KHW, draw_6B[1:, chosen_K]))
        return TrainBatch(replaced_B3HW, label_B)

    def _foreground(self, teacher: Method, image_B3HW: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image_B3HW.device.type, torch.bfloat16, enabled=teacher.bf16):
            map_BDhw = teacher.network.attention(teacher.network.backbone(image_B3HW))
        return foreground_mask(class_activation_map(map_BDhw.float(), self.weight_CD[label_B]), image_B3HW.shape[2:])


def sources(shown_BHW: torch.Tensor, draw_5B: torch.Tensor) -> torch.Tensor:
    """Where each pixel of a moved image comes from, an affine map of (x, y, 1) in pixels, [B,2,3].

    The draws are uniform in [0, 1): which of the moves, the turn, the scale, and the shift in x and in y.
    """
    (left_B, right_B), (top_B, bottom_B) = (_extent(shown_BHW.any(dim)) for dim in (1, 2))
    height, width = shown_BHW.shape[1:]
    kind_B = (3 * draw_5B[0]).long()
    one_B, zero_B = torch.ones_like(draw_5B[0]), torch.zeros_like(draw_5B[0])

    turn_B = math.radians(TURN) * (2 * draw_5B[1] - 1)
    scale_B = SCALE[0] + (SCALE[1] - SCALE[0]) * draw_5B[2]
    middle_x_B, middle_y_B = (left_B + right_B) / 2, (top_B + bottom_B) / 2
    cos_B, sin_B = turn_B.cos() / scale_B, turn_B.sin() / scale_B
    turned = (
        (cos_B, sin_B, middle_x_B - cos_B * middle_x_B - sin_B * middle_y_B),
        (-sin_B, cos_B, middle_y_B + sin_B * middle_x_B - cos_B * middle_y_B),
    )
    # All whole steps that keep the foreground's box in the frame.
    shift_x_B = (draw_5B[3] * (width - (right_B - left_B))).floor() - left_B
    shift_y_B = (draw_5B[4] * (height - (bottom_B - top_B))).floor() - top_B
    shifted = ((one_B, zero_B, -shift_x_B), (zero_B, one_B, -shift_y_B))
    mirrored = ((-one_B, zero_B, (width - 1) * one_B), (zero_B, one_B, zero_B))

    ways_3B23 = torch.stack(
        [torch.stack([torch.stack(row, 1) for row in way], 1) for way in (turned, shifted, mirrored)]
    )
    return ways_3B23[kind_B, torch.arange(len(kind_B), device=kind_B.device)]


def _extent(seen_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last place that is seen, [B] each."""
    seen_BL = seen_BL.long()
    return seen_BL.argmax(1), seen_BL.shape[1] - 1 - seen_BL.flip(1).argmax(1)


def move(image_B3HW: torch.Tensor, shown_BHW: torch.Tensor, source_B23: torch.Tensor) -> torch.Tensor:
    """The images with their foreground moved, [B,3,H,W]; what would come from outside the frame stays as it was."""
    height, width = shown_BHW.shape[1:]
    size_2 = source_B23.new_tensor([width, height])
    # From pixels to affine_grid's frame, which reaches from -1 to 1 over the pixels' outer edges.
    turn_B22 = source_B23[:, :, :2] * (size_2 / size_2[:, None])
    offset_B2 = (source_B23[:, :, :2] @ (size_2 - 1) + 2 * source_B23[:, :, 2] + 1) / size_2 - 1
    theta_B23 = torch.cat([turn_B22, offset_B2[:, :, None]], 2)
    grid_BHW2 = F.affine_grid(theta_B23, [len(image_B3HW), 1, height, width], align_corners=False)
    moved_B3HW = F.grid_sample(image_B3HW, grid_BHW2, padding_mode="border", align_corners=False)
    arrived_B1HW = F.grid_sample(shown_BHW[:, None].float(), grid_BHW2, mode="nearest", align_corners=False) > 0.5
    inside_BHW = (grid_BHW2.abs() <= 1).all(dim=3)
    return torch.where(arrived_B1HW | (shown_BHW & inside_BHW)[:, None], moved_B3HW, image_B3HW)
