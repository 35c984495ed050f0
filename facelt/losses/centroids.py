"""OLTR's discriminative centroids loss: attract to the own centroid, repel from the others.

B batch, D feature, C identities.
"""

from typing import Literal

import torch


class _DiscriminativeCentroids(torch.autograd.Function):
    """The loss and its gradients, the centroids' made in one buffer.

    With d = f - c_y, an image's sum of squared distances to the other centroids is
    C |f|^2 + sum |c|^2 - 2 f . sum c - |d|^2, so neither a B x C nor a B x C x D tensor is needed.
    """

    @staticmethod
    def forward(
        ctx, feature_BD, centroid_CD, label_B, margin: float, repel_weight: float, per_image: bool, weighed: bool
    ):
        batch, classes = len(feature_BD), len(centroid_CD)
        difference_BD = feature_BD - centroid_CD[label_B]
        own_B = difference_BD.square().sum(dim=1)
        centroid_sum_D = centroid_CD.sum(dim=0)
        other_B = (
            classes * feature_BD.square().sum(dim=1)
            + torch.linalg.vector_norm(centroid_CD, dim=1).square().sum()
            - 2 * feature_BD @ centroid_sum_D
            - own_B
        )
        hinge_B = margin - other_B / classes
        if not per_image:
            hinge_B = hinge_B.mean().expand(batch)
        # Each image's slope of the repel part with respect to its sum of squared distances.
        slope_B = (hinge_B > 0) * (-repel_weight / (batch * classes))
        ctx.save_for_backward(feature_BD, centroid_CD, label_B, difference_BD, centroid_sum_D, slope_B)
        ctx.weighed = weighed
        return own_B.sum() / (2 * batch) + repel_weight * hinge_B.clamp_min(0).mean()

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        feature_BD, centroid_CD, label_B, difference_BD, centroid_sum_D, slope_B = ctx.saved_tensors
        batch, classes = len(feature_BD), len(centroid_CD)
        repel_B1 = (2 * grad * slope_B)[:, None]
        grad_feature_BD = grad_centroid_CD = None
        if ctx.needs_input_grad[0]:
            grad_feature_BD = grad / batch * difference_BD
            grad_feature_BD += repel_B1 * (classes * feature_BD - centroid_sum_D - difference_BD)
        if ctx.needs_input_grad[1]:
            count_C = torch.bincount(label_B, minlength=classes)
            attract = grad if ctx.weighed else torch.ones_like(grad)
            attract_B1 = (attract / (batch * (1 + count_C[label_B])))[:, None]
            grad_centroid_CD = centroid_CD * repel_B1.sum()
            grad_centroid_CD -= (repel_B1 * feature_BD).sum(dim=0)
            grad_centroid_CD.index_add_(0, label_B, (repel_B1 - attract_B1) * difference_BD)
        return grad_feature_BD, grad_centroid_CD, None, None, None, None, None


def discriminative_centroids(
    feature_BD: torch.Tensor,
    centroid_CD: torch.Tensor,
    label_B: torch.Tensor,
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
    released code does: a loss weight then scales the features' gradient and the repel part only.
    """
    return _DiscriminativeCentroids.apply(
        feature_BD, centroid_CD, label_B, margin, repel_weight, margin_form == "per_image", weigh_centroids
    )
