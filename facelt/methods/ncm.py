"""The nearest class mean (Kang et al., Decoupling Representation and Classifier, ICLR 2020).

b images of this rank, D feature.
"""

from dataclasses import replace

import torch

from facelt.config import NcmConfig
from facelt.heads import NcmHead
from facelt.methods.base import Inputs
from facelt.methods.frozen_network import PostHoc
from facelt.models.network import Network
from facelt.parallel import ProductLogits, SharedFeature


class Ncm(PostHoc):
    """Features less their mean over the training images, at length 1, go to the class whose mean of such is nearest.

    That mean is taken in a first pass, the classes' in a second. Class means are not brought to length 1 again.
    """

    mean_D: torch.Tensor

    def __init__(
        self, config: NcmConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = NcmHead(network.dim, num_classes, distance=config.distance)
        self.register_buffer("mean_D", torch.zeros(network.dim))
        self._wants_mean = config.centre
        self._sum_D = torch.zeros(network.dim, dtype=torch.float64)
        self._images = 0

    @property
    def wants_pass(self) -> bool:
        return not self.head.memory.is_filled

    def accumulate(self, batch: Inputs) -> None:
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        if self._wants_mean:
            self._sum_D = self._sum_D.to(feature.all_BD.device) + feature.all_BD.double().sum(dim=0)
            self._images += feature.shares.total
        else:
            self.head.accumulate(self._centred(feature), batch.label_B)

    def finish_pass(self) -> None:
        if self._wants_mean:
            self.mean_D.copy_(self._sum_D / self._images)
            self._wants_mean = False
        else:
            self.head.finish()

    def logits(self, image_B3HW: torch.Tensor) -> ProductLogits:
        return self.head(self._centred(SharedFeature.of(self.features(image_B3HW))))

    def _centred(self, feature: SharedFeature) -> SharedFeature:
        return replace(feature, own_bD=feature.own_bD - self.mean_D, all_BD=feature.all_BD - self.mean_D)
