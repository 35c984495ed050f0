"""What every classifier of the feature is."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from facelt.parallel import ShardedLogits, SharedFeature


class Head(nn.Module, ABC):
    """Logits of a feature; in training a head may make it harder for the own identity."""

    @abstractmethod
    def forward(self, feature: SharedFeature) -> ShardedLogits:
        """Logits as they are asked for after training."""

    def training_logits(self, feature: SharedFeature, label_b: torch.Tensor, step: int = 0) -> ShardedLogits:
        """Logits of the training loss, for this rank's images with labels [b]; what is drawn is drawn for `step`."""
        return self(feature)
