"""Distances between the rows of one matrix.

R rows, D feature.

Lifted structure (Song et al., CVPR 2016): every positive pair against all negatives of both its images.

B images of all ranks, D feature.

Range loss (Zhang et al., ICCV 2017): the widest pairs of each class, and the two closest classes.

B images of all ranks, D feature, U classes among them, P pairs of one class, K widest of these.
"""

from typing import Annotated, Any

import torch
from pydantic import Field

from facelt.config.base import NamedSettings
from facelt.config.registry import METRIC_LOSSES, register_metric_loss


def distances(row_RD: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [R, R], taken directly: a matrix product's cancel to noise where rows are close.

    Rows that are equal have the distance 0, with gradient 0 where autograd of the square root would give NaN.
    """
    return torch.cdist(row_RD, row_RD, compute_mode="donot_use_mm_for_euclid_dist")


class MetricLossSettings(NamedSettings):
    """A loss on the features, times `weight`, added to the one on the logits."""

    weight: float = Field(1.0, gt=0)

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", "weight"})


class LiftedSettings(MetricLossSettings):
    """Lifted structure."""

    margin: float = Field(1.0, ge=0)


@register_metric_loss("lifted", LiftedSettings)
def lifted(feature_BD: torch.Tensor, label_B: torch.Tensor, *, margin: float = 1.0) -> torch.Tensor:
    """sum over the pairs (i, j) of one class of max(0, J_ij)^2 / (2 * pairs), a scalar.

    J_ij = log(sum of e^(margin - D) over the negatives of i and those of j) + D_ij. Without a pair of one class, or
    without another class, the loss is 0.
    """
    distance_BB = distances(feature_BD)
    same_BB = label_B[:, None] == label_B
    negatives_B = (margin - distance_BB).masked_fill(same_BB, -torch.inf).logsumexp(dim=1)
    first_P, second_P = same_BB.triu(diagonal=1).nonzero(as_tuple=True)
    pair_P = torch.logaddexp(negatives_B[first_P], negatives_B[second_P]) + distance_BB[first_P, second_P]
    return pair_P.clamp_min(0).square().sum() / (2 * max(len(pair_P), 1))


class RangeSettings(MetricLossSettings):
    """Range loss: `inter_weight` weighs what the two closest classes lack of the `margin`."""

    margin: float = Field(5.0, ge=0)
    inter_weight: float = Field(1.0, ge=0)


# The widest pairs of a class that count, as the paper has it.
WIDEST = 2
# Below this a distance is taken for 0: equal images have no harmonic mean.
CLOSE = 1e-12


@register_metric_loss("range", RangeSettings)
def range_loss(
    feature_BD: torch.Tensor, label_B: torch.Tensor, *, margin: float = 5.0, inter_weight: float = 1.0
) -> torch.Tensor:
    """Intra + inter_weight * inter, a scalar.

    Intra is the sum over the classes of the harmonic mean of their two largest pair distances; a class with two images
    has one pair, a class with one image none. Inter is max(0, margin - D), D being the distance between the two
    closest class means of the batch; 0 with one class only.
    """
    class_U, place_B = label_B.unique(return_inverse=True)
    return _intra(feature_BD, place_B, len(class_U)) + inter_weight * _inter(feature_BD, place_B, len(class_U), margin)


def _intra(feature_BD: torch.Tensor, place_B: torch.Tensor, classes: int) -> torch.Tensor:
    distance_BB = distances(feature_BD)
    first_P, second_P = (place_B[:, None] == place_B).triu(diagonal=1).nonzero(as_tuple=True)
    distance_P, order_P = distance_BB[first_P, second_P].sort(descending=True)
    # By class, and within each by distance: the sort is stable.
    class_P, by_class_P = place_B[first_P][order_P].sort(stable=True)
    start_P = torch.searchsorted(class_P, class_P)
    widest_P = torch.arange(len(class_P), device=class_P.device) - start_P < WIDEST
    class_K, inverse_K = class_P[widest_P], 1 / distance_P[by_class_P][widest_P].clamp_min(CLOSE)
    pairs_U = torch.bincount(class_K, minlength=classes)
    inverse_U = inverse_K.new_zeros(classes).index_add(0, class_K, inverse_K)
    return (pairs_U / inverse_U.masked_fill(pairs_U == 0, 1)).sum()


def _inter(feature_BD: torch.Tensor, place_B: torch.Tensor, classes: int, margin: float) -> torch.Tensor:
    if classes == 1:
        return feature_BD.new_zeros(())
    count_U1 = torch.bincount(place_B)[:, None]
    center_UD = feature_BD.new_zeros(classes, feature_BD.shape[1]).index_add(0, place_B, feature_BD) / count_U1
    first_P, second_P = torch.triu_indices(classes, classes, offset=1, device=center_UD.device)
    return (margin - distances(center_UD)[first_P, second_P].min()).clamp_min(0)


MetricLossConfig = Annotated[MetricLossSettings, METRIC_LOSSES.choice()]
