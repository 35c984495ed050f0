"""Learned logit weights: two classifiers put together class by class.

B images of all ranks, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import FusionLlwConfig
from facelt.methods.base import Inputs, Progress, StepOutput
from facelt.methods.two_classifiers import TwoClassifiers
from facelt.models.network import Network
from facelt.parallel import GivenLogits, SharedFeature


class FusionLlw(TwoClassifiers):
    """z = (w1 z_linear + b1) + (w2 z_ncm + b2), a number a class in each of the four, first drawn from N(0, 1).

    Every rank holds them whole and computes the same loss of the whole batch.
    """

    def __init__(
        self, config: FusionLlwConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.weight_2C = nn.Parameter(torch.randn(2, num_classes))
        self.offset_2C = nn.Parameter(torch.randn(2, num_classes))

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        return StepOutput(F.cross_entropy(self._mixed(feature), feature.shares.gather(batch.label_B)))

    def logits(self, image_B3HW: torch.Tensor) -> GivenLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        return self.given(self._mixed(feature), feature)

    def _mixed(self, feature: SharedFeature) -> torch.Tensor:
        both_2BC = torch.stack(self.answers(feature))
        return (self.weight_2C[:, None] * both_2BC + self.offset_2C[:, None]).sum(dim=0)
