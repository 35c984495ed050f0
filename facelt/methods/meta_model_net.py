"""MetaModelNet (Wang, Ramanan and Hebert, Learning to Model the Tail, NIPS 2017): a chain of doublings.

B images of all ranks, C classes, E weights of a class, U classes that are learned from.
"""

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import MetaModelNetConfig
from facelt.methods.base import Progress
from facelt.methods.shot_regression import ShotRegression
from facelt.models.network import Network


class Doubling(nn.Module):
    """From weights of k images to those of 2 k: a residual block that begins as the identity."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.first = nn.Linear(length, length)
        self.second = nn.Linear(length, length)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, weight_UE: torch.Tensor) -> torch.Tensor:
        return weight_UE + self.second(F.leaky_relu(self.first(F.leaky_relu(weight_UE))))


class MetaModelNet(ShotRegression):
    """Weights of 2^i images go through the blocks i, i + 1, ... to the last one, which leads to many.

    The blocks are trained one after another, from the last to the first, each for an equal part of the stage; those
    behind it stand still. The answers' loss is cross-entropy.
    """

    def __init__(
        self, config: MetaModelNetConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(config, network, num_classes, counts_C)
        self.blocks = nn.ModuleList(Doubling(self.length) for _ in range(config.levels))

    def grow(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        for block in self.blocks[level:]:
            weight_UE = block(weight_UE)
        return weight_UE

    def level(self, progress: Progress, generator: torch.Generator) -> int:
        """The block whose turn it is; the others get no gradient."""
        over = progress.taken * len(self.blocks) // (progress.epochs * progress.steps)
        active = len(self.blocks) - 1 - over
        for place, block in enumerate(self.blocks):
            block.requires_grad_(place == active)
        return active

    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logit_BC, label_B)
