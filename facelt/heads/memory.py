"""Class means, identity centroids (the visual memory of OLTR) and a bank of training features.

b images of this rank, B of all ranks, D feature, C identities of this rank's range, N of a block of them or features in
the bank, K candidates.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import all_reduce, reduce_scatter_batch, stack_ranks
from facelt.distributed.logits import ClassifierLogits, GatheredFeatures, row_blocks

UpdateRule = Literal["released", "tracking"]

# Centroids per image whose distance is recomputed, and the number of columns whose minimum preselects them.
_CANDIDATES = 4
_GROUP = 64


class ClassMeans:
    """Means of the features of each class over one pass, for this rank's range of classes; not part of any state."""

    def __init__(self, classes: ClassRange, dim: int) -> None:
        self.classes = classes
        self._dim = dim
        self._sum_CD: torch.Tensor | None = None
        self._count_C: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Adds a batch's features to the sums of their classes."""
        device = feature.global_BD.device
        if self._sum_CD is None or self._count_C is None:
            self._sum_CD = torch.zeros(len(self.classes), self._dim, dtype=torch.float64, device=device)
            self._count_C = torch.zeros(len(self.classes), dtype=torch.int64, device=device)
        label_B = gather_labels(self.classes, feature, label_b)
        if len(self.classes):
            is_local_B, index_B = self.classes.contains(label_B), self.classes.local_index(label_B)
            feature_BD = feature.global_BD.detach().to(torch.float64).masked_fill(~is_local_B[:, None], 0)
            self._sum_CD.index_add_(0, index_B, feature_BD)
            self._count_C.index_add_(0, index_B, is_local_B.long())

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the means, float64 [C,D], 0 for a class without images, and the classes with images, bool [C].

        Raises RuntimeError if nothing was added.
        """
        if self._sum_CD is None or self._count_C is None:
            raise RuntimeError("finish() before any add()")
        mean_CD, filled_C = self._sum_CD / self._count_C.clamp_min(1)[:, None], self._count_C > 0
        self._sum_CD = self._count_C = None
        return mean_CD, filled_C


def gather_labels(classes: ClassRange, feature: GatheredFeatures, label_b: torch.Tensor) -> torch.Tensor:
    """Returns the labels of the global batch, [B]. Raises IndexError as `ClassRange.check_labels`."""
    label_B = feature.batch_split.gather(label_b)
    classes.check_labels(label_B)
    return label_B


class IdentityMemory(nn.Module):
    """Centroids of identities in D dimensions (OLTR, visual memory M), a contiguous range of them on each rank.

    Two rules keep them up to date:

    - `released`: the centroids are parameters, trained by the discriminative centroids loss with a separate optimiser,
      weight decay included.
    - `tracking`: c += rate * sum(f - c) / (1 + n) over the n features of an identity in the batch, without gradient or
      weight decay. With tens of thousands of identities a centroid is updated so rarely that weight decay would shrink
      it to nothing in between. With `mean_step` the step is rate * sum(f - c) / n: the full mean of the differences.
    """

    def __init__(
        self,
        num_identities: int,
        dim: int,
        *,
        update_rule: UpdateRule = "released",
        rate: float = 0.5,
        mean_step: bool = False,
        min_distance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.classes = ClassRange.local(num_identities)
        self.mean_step = mean_step
        self.update_rule = update_rule
        self.rate = rate
        self.min_distance = min_distance
        centroid_CD = torch.zeros(len(self.classes), dim)
        if update_rule == "released":
            self.centroid_CD = nn.Parameter(centroid_CD)
        else:
            self.register_buffer("centroid_CD", centroid_CD)
        self.register_buffer("filled_C", torch.zeros(len(self.classes), dtype=torch.bool))
        self._means = ClassMeans(self.classes, dim)

    @property
    def is_filled(self) -> bool:
        """True if any rank has a centroid; a collective call."""
        return bool(all_reduce(self.filled_C.any().to(torch.uint8), dist.ReduceOp.MAX))

    def accumulate(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Adds features to the running class sums; after one pass over the data call `finish`."""
        self._means.add(feature, label_b)

    @torch.no_grad()
    def finish(self) -> None:
        """Sets the centroids to the class means.

        The centroid of an identity without images stays 0: it adds nothing to a readout and is never the nearest.
        Raises RuntimeError if nothing was accumulated.
        """
        mean_CD, filled_C = self._means.finish()
        self.centroid_CD.copy_(mean_CD)
        self.filled_C.copy_(filled_C)

    def nearest(self, feature: GatheredFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (distance [b], identity [b]) of the nearest centroid on any rank.

        A matrix product selects each rank's few best centroids. Their distances are recomputed from differences, in
        float32 or better, because |f|^2 - 2 f.c + |c|^2 cancels where centroids are close to each other or to the
        feature. The distance is at least `min_distance`, so that the centroid of a single image (distance 0) gives a
        large finite reachability. The gradient flows into the feature only. Traffic: two numbers per image from each
        rank, and W * b * D values for the nearest centroids.
        """
        with torch.no_grad(), torch.autocast(feature.local_bD.device.type, enabled=False):
            distance_B, index_B = self._nearest_local(feature.global_BD.detach())
            winner_B = stack_ranks(distance_B).argmin(dim=0)
            identity_B = stack_ranks(index_B + self.classes.first).gather(0, winner_B[None])[0]
            centroid_BD = self.classes.rows_of(self.centroid_CD.detach(), identity_B)
            nearest_bD = reduce_scatter_batch(centroid_BD.to(feature.global_BD.dtype), feature.batch_split)
        distance_b = torch.linalg.vector_norm(feature.local_bD - nearest_bD, dim=1)
        return distance_b.clamp_min(self.min_distance), identity_B[feature.batch_split.local_slice]

    @torch.no_grad()
    def mean_target_distance(self, feature: GatheredFeatures, label_b: torch.Tensor) -> torch.Tensor:
        """Returns the mean distance of the global batch's features to the centroids of their identities, a scalar."""
        label_B = gather_labels(self.classes, feature, label_b)
        difference_BD = feature.global_BD.detach() - self.classes.rows_of(self.centroid_CD, label_B)
        distance_B = torch.linalg.vector_norm(difference_BD, dim=1).masked_fill_(~self.classes.contains(label_B), 0)
        return all_reduce(distance_B.sum(), dist.ReduceOp.SUM) / feature.batch_split.total

    def read(self, logits: ClassifierLogits) -> torch.Tensor:
        """Returns the memory feature o M, [b, D]; o is the softmax of the logits.

        No gradient flows into the centroids. Traffic: W * b * D values forward, the same backward.
        """
        return logits.softmax_readout(self.centroid_CD.detach())

    @torch.no_grad()
    def update(self, feature: GatheredFeatures, label_b: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Moves the centroids of the batch's identities by the `tracking` rule; a no-op for `released`.

        `is_finite`, a bool scalar on the device, is that of the step: without it no bit changes.
        """
        if self.update_rule != "tracking":
            return
        label_B = gather_labels(self.classes, feature, label_b)
        if not len(self.classes):
            return
        feature_BD = feature.global_BD.detach().to(self.centroid_CD.dtype)
        # The sums of an identity are in the row of its first image, whose step moves the centroid.
        first_B = first_of_class(label_B)
        sum_BD = torch.zeros_like(feature_BD).index_add_(0, first_B, feature_BD)
        count_B1 = sum_BD.new_zeros(len(first_B)).index_add_(0, first_B, sum_BD.new_ones(len(first_B)))[:, None]
        divisor_B1 = count_B1 if self.mean_step else 1 + count_B1
        step_BD = self.rate * (sum_BD - count_B1 * self.classes.rows_of(self.centroid_CD, label_B)) / divisor_B1
        is_moved_B = self.classes.contains(label_B) & (count_B1[:, 0] > 0) & is_finite
        # The sum with -0 keeps every bit, also that of -0 itself.
        step_BD = step_BD.masked_fill_(~is_moved_B[:, None], -0.0)
        self.centroid_CD.index_add_(0, self.classes.local_index(label_B), step_BD)
        self.filled_C.logical_or_(self.classes.occurring(label_B) & is_finite)

    def _nearest_local(self, feature_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (distance, position) of this rank's nearest centroid, [B] each; inf without one."""
        centroid_CD, scores, positions = self.centroid_CD.detach(), [], []
        for block in row_blocks(centroid_CD):
            # |c|^2 / 2 - f.c orders centroids as the distance does, up to rounding.
            half_N = 0.5 * torch.linalg.vector_norm(centroid_CD[block], dim=1).square()
            half_N = half_N.masked_fill(~self.filled_C[block], torch.inf)
            score_BN = torch.addmm(half_N, feature_BD, centroid_CD[block].t(), alpha=-1)
            score_BK, position_BK = _smallest(score_BN, _CANDIDATES)
            scores.append(score_BK)
            positions.append(position_BK + block.start)
        min_B = feature_BD.new_full((len(feature_BD),), torch.inf)
        nearest_B = torch.zeros_like(min_B, dtype=torch.int64)
        if not scores:
            return min_B, nearest_B
        score_BK, order_BK = _smallest(torch.cat(scores, dim=1), _CANDIDATES)
        # Ascending positions: of equal distances the first one wins.
        position_BK, by_position_BK = torch.cat(positions, dim=1).gather(1, order_BK).sort(dim=1)
        is_empty_BK = score_BK.gather(1, by_position_BK).isposinf()
        for position_B, is_empty_B in zip(position_BK.unbind(dim=1), is_empty_BK.unbind(dim=1), strict=True):
            distance_B = torch.linalg.vector_norm(feature_BD - centroid_CD[position_B], dim=1)
            distance_B = distance_B.masked_fill(is_empty_B, torch.inf)
            nearest_B = torch.where(distance_B < min_B, position_B, nearest_B)
            min_B = torch.minimum(distance_B, min_B)
        return min_B, nearest_B


def _smallest(value_BN: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (values, positions) of the smallest values of each row, [B, count] or [B, N].

    They are in the `count` groups of columns with the smallest minima. One pass for the minima and topk on few columns
    are several times faster than topk on all.
    """
    if value_BN.shape[1] <= count * _GROUP:
        return value_BN.topk(min(count, value_BN.shape[1]), dim=1, largest=False)
    if missing := -value_BN.shape[1] % _GROUP:
        value_BN = F.pad(value_BN, (0, missing), value=torch.inf)
    value_BGN = value_BN.unflatten(1, (-1, _GROUP))
    group_BK = value_BGN.amin(dim=2).topk(count, dim=1, largest=False).indices
    member_BKN = value_BGN.gather(1, group_BK[:, :, None].expand(-1, -1, _GROUP))
    value_BK, index_BK = member_BKN.flatten(1).topk(count, dim=1, largest=False)
    return value_BK, group_BK.gather(1, index_BK // _GROUP) * _GROUP + index_BK % _GROUP


class FeatureBank:
    """Features of a pass over the training set, complete and the same on every rank.

    Not part of any state: features of a frozen network can be computed again.
    """

    def __init__(self) -> None:
        self._features: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self.is_closed = False

    def add(self, feature: GatheredFeatures, label_b: torch.Tensor, keep_C: torch.Tensor | None = None) -> None:
        """Adds the features of a batch, or only those of the classes to keep."""
        feature_BD, label_B = feature.global_BD.detach(), feature.batch_split.gather(label_b)
        if keep_C is not None:
            keep_B = keep_C[label_B]
            feature_BD, label_B = feature_BD[keep_B], label_B[keep_B]
        self._features.append(feature_BD)
        self._labels.append(label_B)

    def close(self) -> None:
        """Ends the pass: `feature_ND` and `label_N` are available."""
        self.feature_ND, self.label_N = torch.cat(self._features), torch.cat(self._labels)
        self._features, self._labels, self.is_closed = [], [], True

    def sample_per_class(self, max_count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (features, labels) of up to `max_count` images of each class, drawn without replacement."""
        order_N = torch.randperm(len(self.label_N), generator=generator, device=self.label_N.device)
        drawn_N = order_N[count_previous(self.label_N[order_N]) < max_count]
        return self.feature_ND[drawn_N], self.label_N[drawn_N]


def first_of_class(label_N: torch.Tensor) -> torch.Tensor:
    """Returns the first row of the same class for each row, int64 [N]."""
    sorted_N, order_N = label_N.sort(stable=True)
    first_N = order_N[torch.searchsorted(sorted_N, sorted_N)]
    return torch.empty_like(first_N).index_copy_(0, order_N, first_N)


def count_previous(label_N: torch.Tensor) -> torch.Tensor:
    """Returns the number of earlier rows of the same class for each row (pandas' cumcount), int64 [N]."""
    sorted_N, order_N = label_N.sort(stable=True)
    count_N = torch.empty_like(label_N)
    count_N[order_N] = torch.arange(len(label_N), device=label_N.device) - torch.searchsorted(sorted_N, sorted_N)
    return count_N
