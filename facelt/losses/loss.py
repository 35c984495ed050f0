"""What every classification loss is: a term an image, averaged by the class weights of the moment.

B images of all ranks, C classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn


class Loss(nn.Module, ABC):
    """A loss of the logits [B, C] of all classes. Losses are built as (counts_C, **options).

    `counts_C` are the training images of each class. What a loss makes of them is a buffer that moves with it to its
    device and is no part of the state.
    """

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__()

    @abstractmethod
    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Each image's loss, [B]; what is drawn is drawn from the generator."""

    def forward(
        self,
        logits_BC: torch.Tensor,
        label_B: torch.Tensor,
        weight_C: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The mean of the terms, a scalar; with class weights the weighted sum over the sum of the images' weights."""
        term_B = self.terms(logits_BC, label_B, generator)
        if weight_C is None:
            return term_B.mean()
        weight_B = weight_C[label_B]
        return (weight_B * term_B).sum() / weight_B.sum()


def seen(counts_C: torch.Tensor) -> torch.Tensor:
    """The counts in float64, a class without images counted as the rarest that has some: nothing divides by 0."""
    return counts_C.clamp_min(counts_C[counts_C > 0].min()).double()
