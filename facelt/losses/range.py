"""Range loss (Zhang et al., ICCV 2017): the widest pairs of each class, and the two closest classes.

B images of all ranks, D feature, U classes among them, P pairs of one class, K widest of these.
"""

import torch

from facelt.losses.distances import distances

# The widest pairs of a class that count, as the paper has it.
WIDEST = 2
# Below this a distance is taken for 0: equal images have no harmonic mean.
CLOSE = 1e-12


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
