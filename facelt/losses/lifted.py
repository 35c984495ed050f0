"""Lifted structure (Song et al., CVPR 2016): every positive pair against all negatives of both its images.

B images of all ranks, D feature.
"""

import torch

from facelt.losses.distances import distances


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
