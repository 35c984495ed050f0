"""Distances between the rows of one matrix.

R rows, D feature.
"""

import torch


def distances(row_RD: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [R, R], taken directly: a matrix product's cancel to noise where rows are close.

    Rows that are equal have the distance 0, with gradient 0 where autograd of the square root would give NaN.
    """
    return torch.cdist(row_RD, row_RD, compute_mode="donot_use_mm_for_euclid_dist")
