"""Metric losses on the features: lifted structure and range loss.

B images of all ranks, R rows, D feature, P = B * B pairs of images.

No shape depends on the labels, so a GPU is not waited for.
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
    is_pair_BB = same_BB.triu(diagonal=1)
    pair_BB = torch.logaddexp(negatives_B[:, None], negatives_B) + distance_BB
    return pair_BB.clamp_min(0).masked_fill(~is_pair_BB, 0).square().sum() / (2 * is_pair_BB.sum().clamp_min(1))


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
    # A class is named by its first image.
    same_BB = label_B[:, None] == label_B
    first_B = same_BB.int().argmax(dim=1)
    return _intra_class(feature_BD, first_B, same_BB) + inter_weight * _inter_class(feature_BD, first_B, margin)


def _intra_class(feature_BD: torch.Tensor, first_B: torch.Tensor, same_BB: torch.Tensor) -> torch.Tensor:
    batch = len(first_B)
    distance_P = _distances(feature_BD).flatten()
    # Pairs of two classes, and the second mention of each pair, are of the class B.
    class_P = torch.where(same_BB.triu(diagonal=1), first_B[:, None], batch).flatten()
    # By class, and within each by distance: the second sort is stable.
    order_P = distance_P.detach().argsort(descending=True)
    class_P, by_class_P = class_P[order_P].sort(stable=True)
    is_counted_P = torch.arange(len(class_P), device=class_P.device) - torch.searchsorted(class_P, class_P)
    is_counted_P = (is_counted_P < _PAIRS_PER_CLASS) & (class_P < batch)
    inverse_P = (1 / distance_P[order_P[by_class_P]].clamp_min(_MIN_DISTANCE)).masked_fill(~is_counted_P, 0)
    pairs_B = class_P.new_zeros(batch + 1).index_add(0, class_P, is_counted_P.long())[:batch]
    inverse_B = inverse_P.new_zeros(batch + 1).index_add(0, class_P, inverse_P)[:batch]
    return (pairs_B / inverse_B.masked_fill(pairs_B == 0, 1)).sum()


def _inter_class(feature_BD: torch.Tensor, first_B: torch.Tensor, margin: float) -> torch.Tensor:
    """Returns the shortfall of the closest class means; 0 with one class."""
    count_B = first_B.new_zeros(len(first_B)).index_add(0, first_B, torch.ones_like(first_B))
    mean_BD = torch.zeros_like(feature_BD).index_add(0, first_B, feature_BD) / count_B.clamp_min(1)[:, None]
    is_pair_BB = ((count_B > 0)[:, None] & (count_B > 0)).triu(diagonal=1)
    return (margin - _distances(mean_BD).masked_fill(~is_pair_BB, torch.inf).min()).clamp_min(0)


def _distances(row_RD: torch.Tensor) -> torch.Tensor:
    """Returns Euclidean distances [R, R] from differences: a matrix product cancels between close rows.

    Equal rows have distance 0 with gradient 0; autograd of the square root would give NaN.
    """
    return torch.cdist(row_RD, row_RD, compute_mode="donot_use_mm_for_euclid_dist")


MetricLossConfig = Annotated[MetricLossSettings, METRIC_LOSSES.choice()]
