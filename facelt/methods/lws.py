"""Learnable weight scaling (Kang et al., Decoupling Representation and Classifier, ICLR 2020)."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from facelt.config import LwsConfig
from facelt.heads import ScaledHead
from facelt.heads.head import take_head
from facelt.methods.base import Inputs, Method, Progress, StepOutput, Stream
from facelt.models.network import Network
from facelt.parallel import ShardedLogits, SharedFeature


class Lws(Method):
    """The earlier stage's linear classifier with a learned factor for each class, by cross-entropy.

    In the paper the network's weights are frozen and its running statistics move: the stage says so by `freeze`.
    """

    def __init__(
        self, config: LwsConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = ScaledHead(network.dim, num_classes)

    def streams(self) -> Sequence[Stream]:
        return (Stream("class_aware"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        take_head(self.head.linear, state)

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        logits = self.head(SharedFeature.of(self.features(batch.image_B3HW)))
        return StepOutput(logits.cross_entropy(batch.label_B))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(SharedFeature.of(self.features(image_B3HW)))
