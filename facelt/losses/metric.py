"""Metric losses on the features: lifted structure and range loss.

B images of all ranks, R rows, D feature, U classes of the batch, P pairs of images of one class, K pairs that count.
"""

from typing import Annotated, Any

import torch
from pydantic import Field

from facelt.config.base import NamedSettings
from facelt.config.registry import METRIC_LOSSES, register_metric_loss

# Pairs per class in the range loss, as in the paper.
_PAIRS_PER_CLASS = 2
# Keeps the harmonic mean of distances finite for equal images.
_MIN_DISTANCE = 1e-12


class MetricLossSettings(NamedSettings):
    """A loss on the features, times `weight`, added to the one on the logits."""

    weight: float = Field(1.0, gt=0)

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", "weight"})


class LiftedSettings(MetricLossSettings):
    """Lifted structure; `margin` is the distance that other classes should keep from a pair of one class."""

    margin: float = Field(1.0, ge=0)


@register_metric_loss("lifted", LiftedSettings)
def lifted_structure_loss(feature_BD: torch.Tensor, label_B: torch.Tensor, *, margin: float = 1.0) -> torch.Tensor:
    """Returns the sum over pairs (i, j) of one class of max(0, J_ij)^2 / (2 * pairs), a scalar.

    J_ij = log(sum of e^(margin - D) over the negatives of i and those of j) + D_ij. The loss is 0 without a pair of one
    class or without a second class. Source: Song et al., CVPR 2016.
    """
    distance_BB = _distances(feature_BD)
    same_BB = label_B[:, None] == label_B
    negatives_B = (margin - distance_BB).masked_fill(same_BB, -torch.inf).logsumexp(dim=1)
    first_P, second_P = same_BB.triu(diagonal=1).nonzero(as_tuple=True)
    pair_P = torch.logaddexp(negatives_B[first_P], negatives_B[second_P]) + distance_BB[first_P, second_P]
    return pair_P.clamp_min(0).square().sum() / (2 * max(len(pair_P), 1))


class RangeSettings(MetricLossSettings):
    """Range loss: `inter_weight` weights the shortfall of the two closest classes from the `margin`."""

    margin: float = Field(5.0, ge=0)
    inter_weight: float = Field(1.0, ge=0)


@register_metric_loss("range", RangeSettings)
def range_loss(
    feature_BD: torch.Tensor, label_B: torch.Tensor, *, margin: float = 5.0, inter_weight: float = 1.0
) -> torch.Tensor:
    """Returns intra + inter_weight * inter, a scalar (Zhang et al., ICCV 2017).

    Intra is the sum over the classes of the harmonic mean of their two largest pair distances; a class of two images
    has one pair, a class of one image none. Inter is max(0, margin - D) with the distance D of the two closest class
    means of the batch, and 0 with one class only.
    """
    class_U, index_B = label_B.unique(return_inverse=True)
    intra = _intra_class(feature_BD, index_B, len(class_U))
    return intra + inter_weight * _inter_class(feature_BD, index_B, len(class_U), margin)


def _intra_class(feature_BD: torch.Tensor, index_B: torch.Tensor, classes: int) -> torch.Tensor:
    distance_BB = _distances(feature_BD)
    first_P, second_P = (index_B[:, None] == index_B).triu(diagonal=1).nonzero(as_tuple=True)
    distance_P, order_P = distance_BB[first_P, second_P].sort(descending=True)
    # By class, and within each by distance: the sort is stable.
    class_P, by_class_P = index_B[first_P][order_P].sort(stable=True)
    start_P = torch.searchsorted(class_P, class_P)
    is_counted_P = torch.arange(len(class_P), device=class_P.device) - start_P < _PAIRS_PER_CLASS
    class_K, inverse_K = class_P[is_counted_P], 1 / distance_P[by_class_P][is_counted_P].clamp_min(_MIN_DISTANCE)
    pairs_U = torch.bincount(class_K, minlength=classes)
    inverse_U = inverse_K.new_zeros(classes).index_add(0, class_K, inverse_K)
    return (pairs_U / inverse_U.masked_fill(pairs_U == 0, 1)).sum()


def _inter_class(feature_BD: torch.Tensor, index_B: torch.Tensor, classes: int, margin: float) -> torch.Tensor:
    if classes == 1:
        return feature_BD.new_zeros(())
    count_U1 = torch.bincount(index_B)[:, None]
    mean_UD = feature_BD.new_zeros(classes, feature_BD.shape[1]).index_add(0, index_B, feature_BD) / count_U1
    first_P, second_P = torch.triu_indices(classes, classes, offset=1, device=mean_UD.device)
    return (margin - _distances(mean_UD)[first_P, second_P].min()).clamp_min(0)


def _distances(row_RD: torch.Tensor) -> torch.Tensor:
    """Returns Euclidean distances [R, R] from differences: a matrix product cancels between close rows.

    Equal rows have distance 0 with gradient 0; autograd of the square root would give NaN.
    """
    return torch.cdist(row_RD, row_RD, compute_mode="donot_use_mm_for_euclid_dist")


MetricLossConfig = Annotated[MetricLossSettings, METRIC_LOSSES.choice()]
