"""A linear classifier and the nearest class mean, put together by a rule that learns nothing.

B images of all ranks, C classes.
"""

from collections.abc import Callable, Sequence

import torch

from facelt.config import FusionConfig
from facelt.methods.frozen_network import PostHoc
from facelt.methods.two_classifiers import Answers, TwoClassifiers
from facelt.models.network import Network
from facelt.parallel import GivenLogits, SharedFeature

Rule = Callable[[Answers, torch.Tensor], torch.Tensor]

# Each makes [B, C] of both answers and the linear one's weight, which only w_mix reads.
RULES: dict[str, Rule] = {
    "sum": lambda both, weight: both.linear_BC + both.ncm_BC,
    "softmax_sum": lambda both, weight: both.linear_BC.softmax(dim=1) + both.ncm_BC.softmax(dim=1),
    "max": lambda both, weight: torch.maximum(both.linear_BC, both.ncm_BC),
    "w_mix": lambda both, weight: torch.lerp(both.ncm_BC, both.linear_BC, weight),
}
GRID = tuple(step / 10 for step in range(11))


class Fusion(PostHoc, TwoClassifiers):
    """The rules sum, sum of softmax, elementwise maximum, and a mixture whose weight is a setting."""

    weight: torch.Tensor

    def __init__(
        self, config: FusionConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.rule = config.rule
        self.register_buffer("weight", torch.tensor(config.weight))

    @property
    def settings(self) -> Sequence[float]:
        return GRID if self.rule == "w_mix" else ()

    def use(self, setting: float) -> None:
        self.weight.fill_(setting)

    def logits(self, image_B3HW: torch.Tensor) -> GivenLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        return self.given(RULES[self.rule](self.answers(feature), self.weight), feature)
