"""Experts trained apart and averaged in the test.

b images of this rank, B of all ranks, K experts, C classes.
"""

import math
from collections.abc import Sequence

import torch

from facelt.config import IndependentConfig
from facelt.methods.base import Inputs, Progress, StepOutput, Stream
from facelt.methods.experts import Experts, equal_batches, mean_logits, whole_logits
from facelt.methods.objective import Objective
from facelt.models.network import Network
from facelt.parallel import ClassRange, GivenLogits, ProductLogits, ShardedLogits, SharedFeature


class Independent(Experts):
    """The loss is the sum of the experts' own, each on batches that it draws for itself; nothing ties them together.

    So with branches that share nothing every expert moves as it would alone, but for the common learning rate.
    """

    def __init__(
        self, config: IndependentConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        options = {"scale": config.scale} if config.head == "cosine" else {}
        super().__init__(network, num_classes, config.sampler, config.head, **options)
        self.classes = ClassRange.own(num_classes)
        self.average = config.average
        self.objective = Objective(config.loss, config.weights, counts_C)

    def streams(self) -> Sequence[Stream]:
        return tuple(Stream(self.sampler, draw=expert) for expert in range(self.network.branches))

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        batches = equal_batches(batches)
        feature = self.shared_features(*(batch.image_B3HW for batch in batches))
        losses = [
            self.objective(expert, batch.label_B, progress)
            for expert, batch in zip(self.experts_of(feature), batches, strict=True)
        ]
        parts = {f"expert_{place}": loss.detach() for place, loss in enumerate(losses, start=1)}
        return StepOutput(sum(losses), parts)

    def together(self, feature: SharedFeature, experts: Sequence[ProductLogits]) -> ShardedLogits:
        """The test average: of the logits, or the logarithm of the mean probabilities."""
        if self.average == "logits":
            return mean_logits(experts)
        logarithm_BC = whole_logits(experts).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(experts))
        return GivenLogits(logarithm_BC, self.classes, experts[0].shares)
