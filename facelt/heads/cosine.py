"""The cosine classifier, without a normalised copy of its weights.

B batch, D feature, K identities drawn.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from facelt.heads.head import Head
from facelt.parallel import MIN_NORM, ClassRange, ClassSample, ProductLogits, Rows, SharedFeature, Shares, replicated


class LearnedScale(nn.Module):
    """One number that every rank holds and learns alike."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([first]))

    def forward(self) -> torch.Tensor:
        return replicated(self.value)


class CosineHead(Head):
    """z = scale * cos(f, w), scale 16 as OLTR's released code has it; with `learn_scale` that is where it begins.

    With a `sample_rate` below 1 the training loss is Partial FC's (An et al., CVPR 2022): each rank takes the batch's
    own identities and a share of its others, and only their rows get a gradient, which is a sparse one.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        scale: float = 16.0,
        sample_rate: float = 1.0,
        *,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.classes = ClassRange.own(num_classes)
        self.scale = scale
        self.learned_scale = LearnedScale(scale) if learn_scale else None
        self.sample_rate = sample_rate
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))

    def along(self, vector_BD: torch.Tensor, shares: Shares) -> ProductLogits:
        """z = scale * v . w / |w|: the vectors of all images with their length, the rows without theirs."""
        scale = self.scale if self.learned_scale is None else self.learned_scale()
        return ProductLogits(scale * vector_BD, Rows(self.weight, unit=True), self.classes, shares)

    def forward(self, feature: SharedFeature) -> ProductLogits:
        return self.along(F.normalize(feature.all_BD, dim=1, eps=MIN_NORM), feature.shares)

    def training_logits(self, feature: SharedFeature, label_b: torch.Tensor, step: int = 0) -> ProductLogits:
        logits = self(feature)
        if self.sample_rate == 1:
            return logits
        sample = ClassSample.draw(self.classes, feature.shares.gather(label_b), self.sample_rate, step)
        drawn_KD = F.embedding(sample.position_K, self.weight, sparse=True)
        return replace(logits, rows=Rows(drawn_KD, unit=True), classes=sample)
