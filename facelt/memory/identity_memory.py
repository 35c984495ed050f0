"""One centroid an identity: filled by class means, asked for the nearest, read out, and kept up to date.

B batch, D feature, C identities.
"""

from typing import Literal

import torch
from torch import nn

from facelt.parallel import ClassRange

UpdateRule = Literal["released", "tracking"]


class IdentityMemory(nn.Module):
    """Centroids of C identities in D dimensions (OLTR, visual memory M).

    Two ways to keep them up to date:

    - `released`: the centroids are parameters, learned by the discriminative centroids loss with an optimiser of
      their own, weight decay included.
    - `tracking`: c += rate * sum(f - c) / (1 + n) over the n features of an identity in the batch; no gradient and no
      decay. With tens of thousands of identities one is seen so seldom that weight decay would shrink it to nothing
      between two visits.
    """

    def __init__(
        self,
        num_identities: int,
        dim: int,
        *,
        update_rule: UpdateRule = "released",
        rate: float = 0.5,
        min_distance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.classes = ClassRange.whole(num_identities)
        self.update_rule = update_rule
        self.rate = rate
        self.min_distance = min_distance
        centroid_CD = torch.zeros(len(self.classes), dim)
        if update_rule == "released":
            self.centroid_CD = nn.Parameter(centroid_CD)
        else:
            self.register_buffer("centroid_CD", centroid_CD)
        self.register_buffer("filled_C", torch.zeros(len(self.classes), dtype=torch.bool))
        self._sum_CD: torch.Tensor | None = None
        self._count_C: torch.Tensor | None = None

    @torch.no_grad()
    def accumulate(self, feature_BD: torch.Tensor, label_B: torch.Tensor) -> None:
        """Adds features to the running class sums; the engine passes over the data once, then calls `finish`."""
        if self._sum_CD is None or self._count_C is None:
            self._sum_CD = torch.zeros_like(self.centroid_CD, dtype=torch.float64)
            self._count_C = torch.zeros(len(self.classes), dtype=torch.int64, device=self.centroid_CD.device)
        self._sum_CD.index_add_(0, label_B, feature_BD.to(torch.float64))
        self._count_C.index_add_(0, label_B, torch.ones_like(label_B))

    @torch.no_grad()
    def finish(self) -> None:
        """The class means become the centroids.

        An identity without an image has no mean: its centroid stays 0, contributes nothing to a read-out, and is
        never the nearest. Raises RuntimeError when nothing was accumulated.
        """
        if self._sum_CD is None or self._count_C is None:
            raise RuntimeError("finish() before any accumulate()")
        mean_CD = self._sum_CD / self._count_C.clamp_min(1)[:, None]
        self.centroid_CD.copy_(mean_CD)
        self.filled_C.copy_(self._count_C > 0)
        self._sum_CD = self._count_C = None

    def nearest(self, feature_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(distance [B], identity [B]) of the nearest centroid.

        The winner comes from one matrix product; its distance is then taken again directly, in float32 or better,
        because |f|^2 - 2 f.c + |c|^2 cancels to noise near 0. It is clamped at `min_distance`, so that the centroid
        of a single image (distance 0) yields a large finite reachability. The gradient flows into the feature only.
        """
        centroid_CD = self.centroid_CD.detach()
        with torch.no_grad():
            half_C = 0.5 * torch.linalg.vector_norm(centroid_CD, dim=1).square()
            half_C = half_C.masked_fill(~self.filled_C, torch.inf)
            identity_B = torch.addmm(half_C, feature_BD, centroid_CD.t(), alpha=-1).argmin(dim=1)
        distance_B = torch.linalg.vector_norm(feature_BD - centroid_CD[identity_B], dim=1)
        return distance_B.clamp_min(self.min_distance), identity_B

    def own_distance(self, feature_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """Distance [B] of features to their own identities' centroids."""
        return torch.linalg.vector_norm(feature_BD - self.centroid_CD.detach()[label_B], dim=1)

    def read(self, coefficient_BC: torch.Tensor) -> torch.Tensor:
        """The memory feature o M, [B, D]; no gradient flows into the centroids."""
        return coefficient_BC @ self.centroid_CD.detach()

    @torch.no_grad()
    def update(self, feature_BD: torch.Tensor, label_B: torch.Tensor) -> None:
        """Moves the centroids of the batch's identities by the `tracking` rule; `released` leaves it to its loss."""
        if self.update_rule != "tracking":
            return
        identity_K, position_B = label_B.unique(return_inverse=True)
        feature_BD = feature_BD.to(self.centroid_CD.dtype)
        total_KD = feature_BD.new_zeros(len(identity_K), feature_BD.shape[1]).index_add_(0, position_B, feature_BD)
        count_K1 = torch.bincount(position_B, minlength=len(identity_K)).to(total_KD.dtype)[:, None]
        centroid_KD = self.centroid_CD[identity_K]
        step_KD = self.rate * (total_KD - count_K1 * centroid_KD) / (1 + count_K1)
        self.centroid_CD.index_copy_(0, identity_K, centroid_KD + step_KD)
        self.filled_C[identity_K] = True
