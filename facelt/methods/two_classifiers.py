"""A linear classifier and the nearest class mean side by side, on the features of a trained network.

B images of all ranks, C classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from facelt.heads import LinearHead, NcmHead
from facelt.heads.head import take_head
from facelt.methods.base import Inputs
from facelt.methods.frozen_network import OnFrozenNetwork
from facelt.models.network import Network
from facelt.parallel import GivenLogits, SharedFeature


class Answers(NamedTuple):
    """What both classifiers say of the global batch, on every rank alike."""

    linear_BC: torch.Tensor
    ncm_BC: torch.Tensor


class TwoClassifiers(OnFrozenNetwork):
    """The earlier stage's linear head and the cosines to the means of unit features, taken in a pass."""

    def __init__(self, network: Network, num_classes: int, scaled: bool) -> None:
        super().__init__(network)
        self.scaled = scaled
        self.linear = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.ncm = NcmHead(network.dim, num_classes)

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        take_head(self.linear, state)

    @property
    def wants_pass(self) -> bool:
        return not self.ncm.memory.is_filled

    def accumulate(self, batch: Inputs) -> None:
        self.ncm.accumulate(SharedFeature.of(self.features(batch.image_B3HW)), batch.label_B)

    def finish_pass(self) -> None:
        self.ncm.finish()

    def answers(self, feature: SharedFeature) -> Answers:
        """Both classifiers' logits."""
        linear_BC, ncm_BC = self.linear(feature).whole_BC, self.ncm(feature).whole_BC
        return Answers(linear_BC, to_range_of(linear_BC, ncm_BC) if self.scaled else ncm_BC)

    def given(self, logit_BC: torch.Tensor, feature: SharedFeature) -> GivenLogits:
        """Logits made of both."""
        return GivenLogits(logit_BC, self.linear.classes, feature.shares)


def to_range_of(goal_BC: torch.Tensor, value_BC: torch.Tensor) -> torch.Tensor:
    """The values mapped, image by image, such that their minimum and maximum are the goal's."""
    low_B1, high_B1 = value_BC.amin(dim=1, keepdim=True), value_BC.amax(dim=1, keepdim=True)
    goal_low_B1, goal_high_B1 = goal_BC.amin(dim=1, keepdim=True), goal_BC.amax(dim=1, keepdim=True)
    share_BC = (value_BC - low_B1) / (high_B1 - low_B1).clamp_min(torch.finfo(value_BC.dtype).tiny)
    return goal_low_B1 + share_BC * (goal_high_B1 - goal_low_B1)


def mean_where(term_B: torch.Tensor, kind_B: torch.Tensor) -> torch.Tensor:
    """The mean of the terms of one kind of images, a scalar; 0 where there are none."""
    return (term_B * kind_B).sum() / kind_B.sum().clamp_min(1)
