"""Model regression (Wang and Hebert, Learning to Learn, ECCV 2016): one network for any few images.

B images of all ranks, C classes, E weights of a class, U classes that are learned from.
"""

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import ModelRegressionConfig
from facelt.methods.base import Progress
from facelt.methods.shot_regression import ShotRegression
from facelt.models.network import Network


class ModelRegression(ShotRegression):
    """A perceptron of two hidden layers; each step draws its level, the answers' loss is the hinge over all classes."""

    def __init__(
        self, config: ModelRegressionConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(config, network, num_classes, counts_C)
        self.transform = nn.Sequential(
            nn.Linear(self.length, config.hidden),
            nn.LeakyReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.LeakyReLU(),
            nn.Linear(config.hidden, self.length),
        )

    def grow(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        return self.transform(weight_UE)

    def level(self, progress: Progress, generator: torch.Generator) -> int:
        return int(torch.randint(self.config.levels, (), generator=generator, device=generator.device))

    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.multi_margin_loss(logit_BC, label_B)
