"""The loss of a classifier's logits, with the class weights of the moment.

b images of this rank, C classes.
"""

import torch
from torch import nn

from facelt.config import LossConfig, WeightsConfig
from facelt.losses import LOSSES, WEIGHTS, Loss
from facelt.methods.base import Progress
from facelt.parallel import ProductLogits


class Objective(nn.Module):
    """Plain cross-entropy stays split over the ranks; every rank computes another loss whole, from all classes' logits.

    Class weights count from their share of the stage's epochs on. Without `counts_C` nothing but the plain
    cross-entropy can be trained.
    """

    weight_C: torch.Tensor | None

    def __init__(self, loss: LossConfig, weights: WeightsConfig | None, counts_C: torch.Tensor | None) -> None:
        super().__init__()
        self.plain = loss.name == "softmax" and weights is None
        self.loss: Loss | None = None
        weight_C = None
        if counts_C is not None and not self.plain:
            self.loss = LOSSES[loss.name](counts_C, **loss.options)
            weight_C = None if weights is None else WEIGHTS[weights.name](counts_C, **weights.options)
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.start = 0.0 if weights is None else weights.start

    def forward(self, logits: ProductLogits, label_b: torch.Tensor, progress: Progress) -> torch.Tensor:
        """The loss of the global batch, a scalar, the same on every rank."""
        if self.plain:
            return logits.cross_entropy(label_b)
        if self.loss is None:
            raise RuntimeError("a method built without the counts of the classes is used, not trained")
        weight_C = self.weight_C if progress.share >= self.start else None
        whole_BC = logits.whole_BC
        generator = progress.generator(whole_BC.device, alike=True)
        return self.loss(whole_BC, logits.shares.gather(label_b), weight_C, generator)
