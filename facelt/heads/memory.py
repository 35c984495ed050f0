"""One centroid an identity: filled by class means, asked for the nearest, read out, and kept up to date.

b images of this rank, B of all ranks, D feature, C identities of this rank's range, N of a block of them.

Features of training images, kept for as long as a stage learns from them.

b images of this rank, B of all ranks, N kept, D feature, C classes.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import all_reduce, rank, reduce_scatter_batch, stack_ranks
from facelt.distributed.logits import ClassifierLogits, GatheredFeatures, row_blocks

UpdateRule = Literal["released", "tracking"]


class IdentityMemory(nn.Module):
    """Centroids of identities in D dimensions (OLTR, visual memory M), a contiguous range of them on each rank.

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
        self.classes = ClassRange.local(num_identities)
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

    @property
    def is_filled(self) -> bool:
        """Whether any rank holds a centroid; all ranks ask together."""
        return bool(all_reduce(self.filled_C.any().to(torch.uint8), dist.ReduceOp.MAX))

    @torch.no_grad()
    def accumulate(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Adds features to the running class sums; the engine passes over the data once, then calls `finish`."""
        if self._sum_CD is None or self._count_C is None:
            self._sum_CD = torch.zeros_like(self.centroid_CD, dtype=torch.float64)
            self._count_C = torch.zeros(len(self.classes), dtype=torch.int64, device=self.centroid_CD.device)
        feature_KD, position_K = self._held(feature, label_b)
        self._sum_CD.index_add_(0, position_K, feature_KD.to(torch.float64))
        self._count_C.index_add_(0, position_K, torch.ones_like(position_K))

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

    def nearest(self, feature: GatheredFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """(distance [b], identity [b]) of the nearest centroid on any rank.

        The winner comes from one matrix product; its distance is then taken again directly, in float32 or better,
        because |f|^2 - 2 f.c + |c|^2 cancels to noise near 0. It is clamped at `min_distance`, so that the centroid
        of a single image (distance 0) yields a large finite reachability. The gradient flows into the feature only.
        Travelling: two numbers an image from each rank, and W * b * D values for the winners.
        """
        with torch.no_grad():
            score_B, local_B = self._nearest_here(feature.global_BD.detach())
            winner_B = stack_ranks(score_B).argmin(dim=0)
            wins_B = winner_B == rank()
            identity_B = stack_ranks(local_B + self.classes.first).gather(0, winner_B[None])[0]
            row_BD = torch.zeros_like(feature.global_BD)
            row_BD[wins_B] = self.centroid_CD.detach()[local_B[wins_B]]
            nearest_bD = reduce_scatter_batch(row_BD, feature.batch_split)
        distance_b = torch.linalg.vector_norm(feature.local_bD - nearest_bD, dim=1)
        return distance_b.clamp_min(self.min_distance), identity_B[feature.batch_split.local_slice]

    @torch.no_grad()
    def own_distance(self, feature: GatheredFeatures, label_b: torch.Tensor) -> torch.Tensor:
        """The mean distance of the global batch's features to their own identities' centroids, a scalar."""
        feature_KD, position_K = self._held(feature, label_b)
        total = torch.linalg.vector_norm(feature_KD - self.centroid_CD[position_K], dim=1).sum()
        return all_reduce(total, dist.ReduceOp.SUM) / feature.batch_split.total

    def read(self, logits: ClassifierLogits) -> torch.Tensor:
        """The memory feature o M, [b, D], o being the softmax of the logits.

        No gradient flows into the centroids. Travelling: W * b * D values, and as many back.
        """
        return logits.softmax_readout(self.centroid_CD.detach())

    @torch.no_grad()
    def update(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Moves the centroids of the batch's identities by the `tracking` rule; `released` leaves it to its loss."""
        if self.update_rule != "tracking":
            return
        feature_KD, position_K = self._held(feature, label_b)
        identity_U, place_K = position_K.unique(return_inverse=True)
        feature_KD = feature_KD.to(self.centroid_CD.dtype)
        total_UD = feature_KD.new_zeros(len(identity_U), feature_KD.shape[1]).index_add_(0, place_K, feature_KD)
        count_U1 = torch.bincount(place_K, minlength=len(identity_U)).to(total_UD.dtype)[:, None]
        centroid_UD = self.centroid_CD[identity_U]
        step_UD = self.rate * (total_UD - count_U1 * centroid_UD) / (1 + count_U1)
        self.centroid_CD.index_copy_(0, identity_U, centroid_UD + step_UD)
        self.filled_C[identity_U] = True

    def _held(self, feature: GatheredFeatures, label_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the global batch whose identities are in this rank's range, and their positions in it."""
        label_B = feature.batch_split.gather(label_b)
        held_B = self.classes.contains(label_B)
        return feature.global_BD.detach()[held_B], label_B[held_B] - self.classes.first

    def _nearest_here(self, feature_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(|c|^2 / 2 - f.c, position) of this rank's nearest centroid, [B] each; inf where it has none."""
        best_B = feature_BD.new_full((len(feature_BD),), torch.inf)
        place_B = torch.zeros_like(best_B, dtype=torch.int64)
        for part in row_blocks(self.centroid_CD):
            centroid_ND = self.centroid_CD.detach()[part]
            half_N = 0.5 * torch.linalg.vector_norm(centroid_ND, dim=1).square()
            half_N = half_N.masked_fill(~self.filled_C[part], torch.inf)
            score_B, near_B = torch.addmm(half_N, feature_BD, centroid_ND.t(), alpha=-1).min(dim=1)
            place_B = torch.where(score_B < best_B, near_B + part.start, place_B)
            best_B = torch.minimum(score_B, best_B)
        return best_B, place_B


class FeatureBank:
    """What a pass over the training set saw, whole and the same on every rank.

    It is no part of a state: features of a network that stands still can be taken again.
    """

    def __init__(self) -> None:
        self._features: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self.is_closed = False

    def add(self, feature: GatheredFeatures, label_b: torch.Tensor, wanted_C: torch.Tensor | None = None) -> None:
        """Keeps the features of a batch, or those of the wanted classes alone."""
        label_B = feature.batch_split.gather(label_b)
        kept_B = torch.ones_like(label_B, dtype=torch.bool) if wanted_C is None else wanted_C[label_B]
        self._features.append(feature.global_BD.detach()[kept_B])
        self._labels.append(label_B[kept_B])

    def close(self) -> None:
        """The end of the pass."""
        self.feature_ND, self.label_N = torch.cat(self._features), torch.cat(self._labels)
        self._features, self._labels, self.is_closed = [], [], True

    def few(self, most: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(features, labels) of up to `most` images of each class, drawn without replacement."""
        order_N = torch.randperm(len(self.label_N), generator=generator, device=self.label_N.device)
        drawn_N = order_N[turn_in_class(self.label_N[order_N]) < most]
        return self.feature_ND[drawn_N], self.label_N[drawn_N]


def turn_in_class(label_N: torch.Tensor) -> torch.Tensor:
    """How many rows of the same class come before each row, int64 [N]."""
    sorted_N, order_N = label_N.sort(stable=True)
    turn_N = torch.empty_like(label_N)
    turn_N[order_N] = torch.arange(len(label_N), device=label_N.device) - torch.searchsorted(sorted_N, sorted_N)
    return turn_N
