"""A rank's own features beside those of all ranks.

b images of this rank, B of all ranks, D feature.
"""

from dataclasses import dataclass

import torch

from facelt.parallel.collectives import Shares, gather_batch


@dataclass(frozen=True)
class SharedFeature:
    """Features gathered once for everything that meets them with this rank's classes."""

    own_bD: torch.Tensor
    all_BD: torch.Tensor
    shares: Shares

    @classmethod
    def of(cls, feature_bD: torch.Tensor, shares: Shares | None = None) -> "SharedFeature":
        """Gathers the ranks' features; `shares` where the sizes are known already."""
        shares = shares or Shares.agree(len(feature_bD), feature_bD.device)
        return cls(feature_bD, gather_batch(feature_bD, shares), shares)
