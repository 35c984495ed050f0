"""OLTR's discriminative centroids loss: attract to the own centroid, repel from the others.

B batch, D feature, C identities.
"""

import torch


class _DiscriminativeCentroids(torch.autograd.Function):
    """The loss and its gradients, the centroids' made in one buffer.

    With d = f - c_y, the sum of squared distances to the other centroids is
    C sum|f|^2 + B sum|c|^2 - 2 sum f . sum c - sum|d|^2, so neither a B x C nor a B x C x D tensor is needed.
    """

    @staticmethod
    def forward(ctx, feature_BD, centroid_CD, label_B, margin: float, repel_weight: float, weigh_centroids: bool):
        batch, classes = len(feature_BD), len(centroid_CD)
        difference_BD = feature_BD - centroid_CD[label_B]
        feature_sum_D, centroid_sum_D = feature_BD.sum(dim=0), centroid_CD.sum(dim=0)
        own_pairs = difference_BD.square().sum()
        other_pairs = (
            classes * feature_BD.square().sum()
            + batch * torch.linalg.vector_norm(centroid_CD, dim=1).square().sum()
            - 2 * feature_sum_D @ centroid_sum_D
            - own_pairs
        )
        hinge = margin - other_pairs / (batch * classes)
        ctx.save_for_backward(feature_BD, centroid_CD, label_B, difference_BD, centroid_sum_D)
        # The hinge's slope with respect to the sum over the other pairs.
        ctx.slope = -repel_weight / (batch * classes) if hinge > 0 else 0.0
        ctx.weigh_centroids = weigh_centroids
        return own_pairs / (2 * batch) + repel_weight * hinge.clamp_min(0)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        feature_BD, centroid_CD, label_B, difference_BD, centroid_sum_D = ctx.saved_tensors
        batch, classes = len(feature_BD), len(centroid_CD)
        repel = 2 * ctx.slope * grad
        grad_feature_BD = grad_centroid_CD = None
        if ctx.needs_input_grad[0]:
            grad_feature_BD = grad / batch * difference_BD
            grad_feature_BD += repel * (classes * feature_BD - centroid_sum_D - difference_BD)
        if ctx.needs_input_grad[1]:
            count_C = torch.bincount(label_B, minlength=classes)
            attract = grad if ctx.weigh_centroids else torch.ones_like(grad)
            attract_B1 = (attract / (batch * (1 + count_C[label_B])))[:, None]
            grad_centroid_CD = centroid_CD * (repel * batch)
            grad_centroid_CD -= repel * feature_BD.sum(dim=0)
            grad_centroid_CD.index_add_(0, label_B, (repel - attract_B1) * difference_BD)
        return grad_feature_BD, grad_centroid_CD, None, None, None, None


def discriminative_centroids(
    feature_BD: torch.Tensor,
    centroid_CD: torch.Tensor,
    label_B: torch.Tensor,
    *,
    margin: float = 10.0,
    repel_weight: float = 0.01,
    weigh_centroids: bool = False,
) -> torch.Tensor:
    """attract + repel_weight * max(0, margin - mean squared distance to the other centroids), a scalar.

    attract = sum |f - c_y|^2 / (2 B); the mean in the hinge divides by B x C and counts the own centroid as 0 (OLTR,
    released form). Gradients flow into the features, and into the centroids where they ask for it. There the attract
    part is averaged by 1 + the identity's count in the batch, and with `weigh_centroids` off it ignores the incoming
    gradient, as the released code does: a loss weight then scales the features' gradient and the repel part only.
    """
    return _DiscriminativeCentroids.apply(feature_BD, centroid_CD, label_B, margin, repel_weight, weigh_centroids)
