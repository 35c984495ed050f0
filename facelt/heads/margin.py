"""Angular margins: the own identity's cosine is made smaller in training, so that the feature has to come closer.

K images whose identity this rank holds.
"""

import math
from dataclasses import dataclass, replace

import torch

from facelt.heads.cosine import CosineHead
from facelt.parallel import ProductLogits, SharedFeature

# acos has no slope at 1 and -1.
COSINE_LIMIT = 1 - 1e-6


@dataclass(frozen=True)
class Margin:
    """cos(angular * theta + additive) - cosine, the combined margin of ArcFace (CVPR 2019, equation 4).

    (1, 0.5, 0) is ArcFace, (1, 0, 0.4) CosFace. Where the widened angle exceeds pi its cosine would rise again and
    reward a worse feature. There cos(theta) less a constant takes its place: additive * sin(additive), as ArcFace's
    authors have it, or what keeps the curve falling where `angular` bends it, whichever is more.
    """

    angular: float = 1.0
    additive: float = 0.0
    cosine: float = 0.0

    def __call__(self, cosine_K: torch.Tensor) -> torch.Tensor:
        """Target cosines [K] with the margin taken off."""
        if self.angular == 1 and self.additive == 0:
            return cosine_K - self.cosine
        theta_K = cosine_K.clamp(-COSINE_LIMIT, COSINE_LIMIT).acos()
        widened_K = self.angular * theta_K + self.additive
        straight_angle = (math.pi - self.additive) / self.angular
        penalty = max(self.additive * math.sin(self.additive), 1 + math.cos(straight_angle))
        return torch.where(widened_K <= math.pi, widened_K.cos(), cosine_K - penalty) - self.cosine


ARCFACE = Margin(additive=0.5)


class MarginHead(CosineHead):
    """A cosine classifier that trains with a margin and answers without one."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        scale: float = 64.0,
        margin: Margin = ARCFACE,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(dim, num_classes, scale, sample_rate)
        self.margin = margin

    def training_logits(self, feature: SharedFeature, label_b: torch.Tensor, step: int = 0) -> ProductLogits:
        """Logits whose loss has the margin taken off each image's own identity, on the rank that holds it."""
        return replace(super().training_logits(feature, label_b, step), harder=self._harder)

    def _harder(self, logit_K: torch.Tensor) -> torch.Tensor:
        return self.scale * self.margin(logit_K / self.scale)
