"""OLTR's discriminative centroids loss: attracts features to their own centroid, repels them from the others.

B images of all ranks, D feature, C identities of this rank's range.
"""

from typing import Literal

import torch
import torch.distributed as dist

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import all_reduce
from facelt.distributed.logits import GatheredFeatures, in_float32


class _DiscriminativeCentroids(torch.autograd.Function):
    """The loss with explicit gradients; those of the centroids take one buffer.

    With d = f - c_y, the sum of squared distances of an image to the other centroids is
    C |f|^2 + sum |c|^2 - 2 f . sum c - |d|^2. No B x C or B x C x D tensor is needed, and ranks exchange one vector and
    one number per image. Each rank computes the gradient of its centroids' terms.
    """

    @staticmethod
    @in_float32
    def forward(
        ctx,
        feature_BD,
        centroid_CD,
        label_B,
        classes: ClassRange,
        margin: float,
        repel_weight: float,
        is_per_image: bool,
        scale_centroid_gradient: bool,
    ):
        batch, total = len(feature_BD), classes.total
        is_local_B = classes.contains(label_B)
        # 0 for the images whose identity is on another rank.
        difference_BD = (feature_BD - classes.rows_of(centroid_CD, label_B)).masked_fill_(~is_local_B[:, None], 0)
        own_B = all_reduce(difference_BD.square().sum(dim=1), dist.ReduceOp.SUM)
        centroid_sum_D = centroid_CD.sum(dim=0)
        # One message for the sum of all centroids and the sum of their squared norms.
        squares = torch.linalg.vector_norm(centroid_CD, dim=1).square().sum()
        sums = all_reduce(torch.cat([centroid_sum_D, squares[None]]), dist.ReduceOp.SUM)
        other_B = total * feature_BD.square().sum(dim=1) + sums[-1] - 2 * feature_BD @ sums[:-1] - own_B
        hinge_B = margin - other_B / total
        if not is_per_image:
            hinge_B = hinge_B.mean().expand(batch)
        # Derivative of the repel part with respect to each image's sum of squared distances.
        slope_B = (hinge_B > 0).to(feature_BD.dtype) * (-repel_weight / (batch * total))
        index_B = classes.local_index(label_B)
        ctx.save_for_backward(feature_BD, centroid_CD, is_local_B, index_B, difference_BD, centroid_sum_D, slope_B)
        ctx.scale_centroid_gradient = scale_centroid_gradient
        return own_B.sum() / (2 * batch) + repel_weight * hinge_B.clamp_min(0).mean()

    @staticmethod
    @in_float32
    def backward(ctx, grad: torch.Tensor):
        feature_BD, centroid_CD, is_local_B, index_B, difference_BD, centroid_sum_D, slope_B = ctx.saved_tensors
        batch, classes = feature_BD.shape[0], len(centroid_CD)
        repel_B1 = (2 * grad * slope_B)[:, None]
        grad_feature_BD = grad_centroid_CD = None
        if ctx.needs_input_grad[0]:
            grad_feature_BD = repel_B1 * (classes * feature_BD - centroid_sum_D)
            grad_feature_BD += (grad / batch - repel_B1) * difference_BD
        if ctx.needs_input_grad[1]:
            feature_sum_D = -(repel_B1 * feature_BD).sum(dim=0)
            grad_centroid_CD = torch.addcmul(feature_sum_D, centroid_CD, repel_B1.sum())
            if classes:
                count_C = index_B.new_zeros(classes).index_add_(0, index_B, is_local_B.long())
                attract = grad if ctx.scale_centroid_gradient else torch.ones_like(grad)
                attract_B1 = (attract / (batch * (1 + count_C[index_B])))[:, None]
                grad_centroid_CD.index_add_(0, index_B, (repel_B1 - attract_B1) * difference_BD)
        return grad_feature_BD, grad_centroid_CD, *(None,) * 6


def discriminative_centroids_loss(
    feature: GatheredFeatures,
    centroid_CD: torch.Tensor,
    label_b: torch.Tensor,
    classes: ClassRange,
    *,
    margin: float = 10.0,
    repel_weight: float = 0.01,
    margin_form: Literal["batch_mean", "per_image"] = "batch_mean",
    scale_centroid_gradient: bool = False,
) -> torch.Tensor:
    """Returns attract + repel_weight * max(0, margin - mean squared distance to the other centroids), a scalar.

    attract = sum |f - c_y|^2 / (2 B). The mean counts the own centroid as 0. It runs over batch and centroids before
    the hinge (`batch_mean`, OLTR's released code), or over the centroids with one hinge per image (`per_image`).

    Gradients flow into the features and, if they require it, into the centroids. The centroids' attract part is divided
    by 1 + the identity's count in the batch. Without `scale_centroid_gradient` it ignores the incoming gradient, as in
    the released code: a loss weight then scales the features' gradient and the repel part only. `classes` is the range
    of this rank's centroids; the value is the same on every rank. Raises IndexError for a label outside 0..C-1.
    """
    label_B = feature.batch_split.gather(label_b)
    classes.check_labels(label_B)
    is_per_image = margin_form == "per_image"
    options = classes, margin, repel_weight, is_per_image, scale_centroid_gradient
    return _DiscriminativeCentroids.apply(feature.global_BD, centroid_CD, label_B, *options)
