"""Nearest class mean classifier on normalised features.

b images of this rank, B of all ranks, D feature, C classes of this rank's range.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F

from facelt.distributed.logits import NORM_EPS, ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.heads.classifiers import Head
from facelt.heads.memory import IdentityMemory

NcmDistance = Literal["euclidean", "cosine"]

# The lowest possible logits, for a class without images: those of opposite unit vectors.
_LOWEST_COSINE = -1.0
_LOWEST_EUCLIDEAN = -3.0


class NcmHead(Head):
    """Logits are the cosine to a class's mean, or 2 f . c - |c|^2, which is 1 minus the squared distance to it.

    The means are of features of length 1 and are not normalised themselves. A class without images has the lowest
    possible logit. No parameter gets a gradient; `update` moves the means at `rate` by the memory's `tracking` rule,
    with its `mean_step`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        distance: NcmDistance = "cosine",
        rate: float = 0.5,
        mean_step: bool = False,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.memory = IdentityMemory(num_classes, dim, update_rule="tracking", rate=rate, mean_step=mean_step)

    def accumulate(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Adds a batch to the class means; after one pass over the data call `finish`."""
        self.memory.accumulate(_normalized(feature), label_b)

    def finish(self) -> None:
        """Sets the class means."""
        self.memory.finish()

    def update(self, feature: GatheredFeatures, label_b: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Moves the means of the batch's classes towards its features, if the step is finite."""
        self.memory.update(_normalized(feature), label_b, is_finite)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        mean_CD, filled_C = self.memory.centroid_CD, self.memory.filled_C
        unit_BD = F.normalize(feature.global_BD, dim=1, eps=NORM_EPS)
        if self.distance == "cosine":
            weight_CD = F.normalize(mean_CD, dim=1, eps=NORM_EPS)
            bias_C = torch.where(filled_C, 0.0, _LOWEST_COSINE).to(mean_CD.dtype)
        else:
            unit_BD, weight_CD = 2 * unit_BD, mean_CD
            bias_C = torch.where(filled_C, -mean_CD.square().sum(dim=1), _LOWEST_EUCLIDEAN)
        return ClassifierLogits(unit_BD, ClassWeights(weight_CD, bias_C), self.memory.classes, feature.batch_split)


def _normalized(feature: GatheredFeatures) -> GatheredFeatures:
    local_bD = F.normalize(feature.local_bD, dim=1, eps=NORM_EPS)
    return replace(feature, local_bD=local_bD, global_BD=F.normalize(feature.global_BD, dim=1, eps=NORM_EPS))
