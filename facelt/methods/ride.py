"""RIDE: diverse distribution-aware experts (Wang et al., ICLR 2021).

B images of all ranks, K experts, C classes.
"""

from collections.abc import Sequence

import torch

from facelt.config import RideConfig
from facelt.losses import LOSSES, WEIGHTS, Loss, distillation, diversity_temperature, ride
from facelt.methods.base import Inputs, Progress, StepOutput
from facelt.methods.experts import Experts, whole_logits
from facelt.models.network import Network


class Ride(Experts):
    """Every expert is trained by the loss for itself, and to differ from the experts' mean.

    With a teacher the mean of the experts learns from the teacher's mean. As in the released code the whole loss then
    counts K times, once for each expert: the published figures are of steps so much longer.
    """

    weight_C: torch.Tensor | None
    temperature_C: torch.Tensor | None

    def __init__(
        self, config: RideConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.config = config
        self.individual: Loss | None = None
        weight_C = temperature_C = None
        if counts_C is not None:
            self.individual = LOSSES[config.loss.name](counts_C, **config.loss.options)
            temperature_C = diversity_temperature(counts_C, config.temperature_spread)
            if config.weights is not None:
                weight_C = WEIGHTS[config.weights.name](counts_C, **config.weights.options)
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.register_buffer("temperature_C", temperature_C, persistent=False)

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = self.shared_features(batch.image_B3HW)
        expert_KBC = whole_logits(self.experts_of(feature))
        loss = self._ride(expert_KBC, feature.shares.gather(batch.label_B), progress)
        if self.config.distillation is None:
            return StepOutput(loss)
        learnt = self._learnt(expert_KBC.mean(dim=0), batch.image_B3HW)
        total = len(expert_KBC) * (loss + self.config.distillation.weight * learnt)
        return StepOutput(total, {"ride": loss.detach(), "distillation": learnt.detach()})

    def _ride(self, expert_KBC: torch.Tensor, label_B: torch.Tensor, progress: Progress) -> torch.Tensor:
        weights = self.config.weights
        weight_C = self.weight_C if weights is not None and progress.share >= weights.start else None
        if self.config.collaborative:
            return len(expert_KBC) * self.individual(expert_KBC.mean(dim=0), label_B, weight_C)
        temperature_C = self.temperature_C if progress.share >= self.config.temperature_start else None
        return ride(
            expert_KBC,
            label_B,
            self.individual,
            diversity=self.config.diversity,
            weight_C=weight_C,
            temperature_C=temperature_C,
        )

    def _learnt(self, mean_BC: torch.Tensor, image_B3HW: torch.Tensor) -> torch.Tensor:
        """T^2 times the divergence of the experts' mean from the teacher's answer."""
        (teacher,) = self.teachers
        with torch.no_grad():
            teacher_BC = teacher.logits(image_B3HW).whole_BC
        temperature = self.config.distillation.temperature
        return temperature**2 * distillation(mean_BC, teacher_BC, temperature).mean()
