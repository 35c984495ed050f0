"""The cosine classifier, without a normalised copy of its weights.

B batch, D feature, C identities of this rank's range.
"""

import torch
from torch import nn

from facelt.heads.head import Head
from facelt.parallel import ClassRange, ShardedLogits, SharedFeature

MIN_NORM = 1e-12


class _DirectionProduct(torch.autograd.Function):
    """u W^T / |w|: the product with every row's direction.

    At 74,500 rows of 512 a normalised copy of W is 153 MB and its gradient another, so the norms divide the product
    instead of the weights, and the radial part leaves the weights' gradient in place:
    dL/dW = (g / |w|)^T u - w * sum_b(g z) / |w|^2.
    """

    @staticmethod
    def forward(ctx, unit_BD: torch.Tensor, weight_CD: torch.Tensor) -> torch.Tensor:
        inverse_C = torch.linalg.vector_norm(weight_CD, dim=1).clamp_min(MIN_NORM).reciprocal()
        product_BC = (unit_BD @ weight_CD.t()).mul_(inverse_C)
        ctx.save_for_backward(unit_BD, weight_CD, inverse_C, product_BC)
        return product_BC

    @staticmethod
    def backward(ctx, grad_BC: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        unit_BD, weight_CD, inverse_C, product_BC = ctx.saved_tensors
        scaled_BC = grad_BC * inverse_C
        grad_unit_BD = scaled_BC @ weight_CD if ctx.needs_input_grad[0] else None
        grad_weight_CD = None
        if ctx.needs_input_grad[1]:
            radial_C = torch.linalg.vecdot(scaled_BC, product_BC, dim=0).mul_(inverse_C)
            grad_weight_CD = scaled_BC.t() @ unit_BD
            grad_weight_CD.addcmul_(weight_CD, radial_C[:, None], value=-1)
        return grad_unit_BD, grad_weight_CD


def cosine_logits(vector_BD: torch.Tensor, weight_CD: torch.Tensor) -> torch.Tensor:
    """cos(v, w_k), [B, C]; 0 for a vector of length 0. Both gradients are exact; no C x D temporary is made."""
    norm_B1 = torch.linalg.vector_norm(vector_BD, dim=1, keepdim=True).clamp_min(MIN_NORM)
    return _DirectionProduct.apply(vector_BD / norm_B1, weight_CD)


class CosineHead(Head):
    """z = scale * cos(f, w), scale 16 as OLTR's released code has it."""

    def __init__(self, dim: int, num_classes: int, scale: float = 16.0) -> None:
        super().__init__()
        self.classes = ClassRange.own(num_classes)
        self.scale = scale
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))

    def forward(self, feature: SharedFeature) -> ShardedLogits:
        return ShardedLogits(self.scale * cosine_logits(feature.all_BD, self.weight), self.classes, feature.shares)
