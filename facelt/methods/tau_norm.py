"""Tau-normalisation of a linear classifier (Kang et al., Decoupling Representation and Classifier, ICLR 2020).

D feature, C identities of this rank's range.
"""

from collections.abc import Mapping, Sequence

import torch

from facelt.config import TauNormConfig
from facelt.heads import LinearHead
from facelt.heads.head import take_head
from facelt.methods.frozen_network import PostHoc
from facelt.models.network import Network
from facelt.parallel import MIN_NORM, ProductLogits, Rows, SharedFeature

GRID = tuple(step / 10 for step in range(21))


class TauNorm(PostHoc):
    """z_c = w_c f / |w_c|^tau with the rows of the earlier stage's linear head, whose bias is dropped."""

    tau: torch.Tensor

    def __init__(
        self, config: TauNormConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(config.tau))

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        take_head(self.head, state)

    @property
    def settings(self) -> Sequence[float]:
        return GRID

    def use(self, setting: float) -> None:
        self.tau.fill_(setting)

    def logits(self, image_B3HW: torch.Tensor) -> ProductLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        norm_C1 = torch.linalg.vector_norm(self.head.weight, dim=1, keepdim=True).clamp_min(MIN_NORM)
        rows = Rows(self.head.weight / norm_C1.pow(self.tau))
        return ProductLogits(feature.all_BD, rows, self.head.classes, feature.shares)
