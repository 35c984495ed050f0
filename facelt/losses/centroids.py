"""OLTR's discriminative centroids loss: attract to the own centroid, repel from the others.

B images of all ranks, D feature, C identities of this rank's range.
"""

from typing import Literal

import torch
import torch.distributed as dist

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import all_reduce
from facelt.distributed.logits import GatheredFeatures, in_float32


class _DiscriminativeCentroids(torch.autograd.Function):
    """The loss and its gradients, the centroids' made in one buffer.

    With d = f - c_y, an image's sum of squared distances to the other centroids is
    C |f|^2 + sum |c|^2 - 2 f . sum c - |d|^2, so neither a B x C nor a B x C x D tensor is needed, and the ranks
    exchange one vector and one number an image. Each rank's gradient is that of its own centroids' terms.
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
        per_image,
        weighed,
    ):
        batch, total = len(feature_BD), classes.total
        held_B = classes.contains(label_B)
        position_K = label_B[held_B] - classes.first
        difference_KD = feature_BD[held_B] - centroid_CD[position_K]
        own_B = feature_BD.new_zeros(batch).masked_scatter_(held_B, difference_KD.square().sum(dim=1))
        own_B = all_reduce(own_B, dist.ReduceOp.SUM)
        centroid_sum_D = centroid_CD.sum(dim=0)
        # The sum of all centroids and the sum of their squared lengths travel as one vector.
        squares = torch.linalg.vector_norm(centroid_CD, dim=1).square().sum()
        sums = all_reduce(torch.cat([centroid_sum_D, squares[None]]), dist.ReduceOp.SUM)
        other_B = total * feature_BD.square().sum(dim=1) + sums[-1] - 2 * feature_BD @ sums[:-1] - own_B
        hinge_B = margin - other_B / total
        if not per_image:
            hinge_B = hinge_B.mean().expand(batch)
        # Each image's slope of the repel part with respect to its sum of squared distances.
        slope_B = (hinge_B > 0).to(feature_BD.dtype) * (-repel_weight / (batch * total))
        ctx.save_for_backward(feature_BD, centroid_CD, held_B, position_K, difference_KD, centroid_sum_D, slope_B)
        ctx.weighed = weighed
        return own_B.sum() / (2 * batch) + repel_weight * hinge_B.clamp_min(0).mean()

    @staticmethod
    @in_float32
    def backward(ctx, grad: torch.Tensor):
        feature_BD, centroid_CD, held_B, position_K, difference_KD, centroid_sum_D, slope_B = ctx.saved_tensors
        batch, classes = feature_BD.shape[0], len(centroid_CD)
        repel_B1 = (2 * grad * slope_B)[:, None]
        repel_K1 = repel_B1[held_B]
        grad_feature_BD = grad_centroid_CD = None
        if ctx.needs_input_grad[0]:
            grad_feature_BD = repel_B1 * (classes * feature_BD - centroid_sum_D)
            grad_feature_BD[held_B] += (grad / batch - repel_K1) * difference_KD
        if ctx.needs_input_grad[1]:
            count_C = torch.bincount(position_K, minlength=classes)
            attract = grad if ctx.weighed else torch.ones_like(grad)
            attract_K1 = (attract / (batch * (1 + count_C[position_K])))[:, None]
            pull_D = -(repel_B1 * feature_BD).sum(dim=0)
            grad_centroid_CD = torch.addcmul(pull_D, centroid_CD, repel_B1.sum())
            grad_centroid_CD.index_add_(0, position_K, (repel_K1 - attract_K1) * difference_KD)
        return grad_feature_BD, grad_centroid_CD, *(None,) * 6


def discriminative_centroids(
    feature: GatheredFeatures,
    centroid_CD: torch.Tensor,
    label_b: torch.Tensor,
    classes: ClassRange,
    *,
    margin: float = 10.0,
    repel_weight: float = 0.01,
    margin_form: Literal["batch_mean", "per_image"] = "batch_mean",
    weigh_centroids: bool = False,
) -> torch.Tensor:
    """attract + repel_weight * max(0, margin - mean squared distance to the other centroids), a scalar.

    attract = sum |f - c_y|^2 / (2 B). The mean counts the own centroid as 0 and runs over batch and centroids before
    the hinge (`batch_mean`, OLTR's released form), or over the centroids, with one hinge an image (`per_image`).
    Gradients flow into the features, and into the centroids where they ask for it. There the attract part is averaged
    by 1 + the identity's count in the batch, and with `weigh_centroids` off it ignores the incoming gradient, as the
    released code does: a loss weight then scales the features' gradient and the repel part only. `classes` are those
    whose centroids this rank holds; the value is the same on every rank.
    """
    label_B = feature.batch_split.gather(label_b)
    classes.check_labels(label_B)
    return _DiscriminativeCentroids.apply(
        feature.global_BD,
        centroid_CD,
        label_B,
        classes,
        margin,
        repel_weight,
        margin_form == "per_image",
        weigh_centroids,
    )
