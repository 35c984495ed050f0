"""The nearest class mean of unit features, as a classifier.

b images of this rank, B of all ranks, D feature, C identities of this rank's range.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F

from facelt.distributed.logits import MIN_NORM, ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.heads.classifiers import Head
from facelt.heads.memory import IdentityMemory

Distance = Literal["euclidean", "cosine"]


class NcmHead(Head):
    """Logits are the cosine to a class's mean, or 2 f . c - |c|^2: the squared distance to it, turned round, plus 1.

    Means are of features of length 1 and keep the length they have. A class without images has the lowest logit there
    can be. Nothing is learned by gradients; `update` follows the features at `rate`, as the memory's rule `tracking`.
    """

    def __init__(self, dim: int, num_classes: int, *, distance: Distance = "cosine", rate: float = 0.5) -> None:
        super().__init__()
        self.distance = distance
        self.memory = IdentityMemory(num_classes, dim, update_rule="tracking", rate=rate)

    def accumulate(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """One batch of the pass that makes the means; then `finish`."""
        self.memory.accumulate(_unit(feature), label_b)

    def finish(self) -> None:
        self.memory.finish()

    def update(self, feature: GatheredFeatures, label_b: torch.Tensor) -> None:
        """Moves the means of the batch's classes towards its features."""
        self.memory.update(_unit(feature), label_b)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        mean_CD, filled_C = self.memory.centroid_CD, self.memory.filled_C
        unit_BD = F.normalize(feature.global_BD, dim=1, eps=MIN_NORM)
        if self.distance == "cosine":
            rows = ClassWeights(F.normalize(mean_CD, dim=1, eps=MIN_NORM), filled_C.to(mean_CD.dtype) - 1)
            return ClassifierLogits(unit_BD, rows, self.memory.classes, feature.batch_split)
        lowest = -3.0  # two unit vectors that are opposite: 2 * -1 - 1
        square_C = mean_CD.square().sum(dim=1)
        rows = ClassWeights(mean_CD, torch.where(filled_C, -square_C, lowest))
        return ClassifierLogits(2 * unit_BD, rows, self.memory.classes, feature.batch_split)


def _unit(feature: GatheredFeatures) -> GatheredFeatures:
    """The features' directions."""
    local_bD = F.normalize(feature.local_bD, dim=1, eps=MIN_NORM)
    return replace(feature, local_bD=local_bD, global_BD=F.normalize(feature.global_BD, dim=1, eps=MIN_NORM))
