"""Experts trained under different class priors, and averaged: BalPoE and SADE.

B images of all ranks, K experts, C classes.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from facelt.config.registry import MIXINGS, SamplerName, register_method
from facelt.config.train import MethodSettings
from facelt.errors import UserError
from facelt.losses.classification import log_prior
from facelt.losses.experts import expert_cross_entropies, reversed_prior
from facelt.methods.base import StepContext, StepOutput, TrainBatch
from facelt.methods.mixing import MixupSettings
from facelt.methods.multi_expert import MultiExpertMethod, stack_full_logits
from facelt.models.network import Network

_Mix = Annotated[MixupSettings, MIXINGS.choice("input", "remix")]


class PriorExpertsSettings(MethodSettings):
    """Settings of all such methods: the sampler, the scale of the cosines, and mixing."""

    sampler: SamplerName = "instance"
    scale: float = Field(30.0, gt=0)
    mix: _Mix | None = None


class PriorExpertsMethod(MultiExpertMethod):
    """Base class: cosine experts, each with an offset [C] on its logits in training.

    The offsets are multiples of log priors. Predictions are the mean of the logits without them.
    """

    offset_KC: torch.Tensor | None

    def __init__(
        self,
        config: PriorExpertsSettings,
        network: Network,
        num_classes: int,
        counts_C: torch.Tensor | None,
        offset_KC: torch.Tensor | None,
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.mixing = None if config.mix is None else MIXINGS[config.mix.name](counts_C, **config.mix.options)
        self.register_buffer("offset_KC", offset_KC, persistent=False)

    def total(self, loss_K: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a step from those of the experts, a scalar."""
        return loss_K.sum()

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        blend = None
        if self.mixing is not None:
            blend = self.mixing.draw(batch.label_B, context, context.generator(batch.label_B.device))
        feature = self.gathered_features(batch.image_B3HW if blend is None else blend.mix(batch.image_B3HW))
        expert_KBC = stack_full_logits(self.expert_logits(feature)) + self.offset_KC[:, None]

        def losses(label_b: torch.Tensor) -> torch.Tensor:
            return expert_cross_entropies(expert_KBC, feature.batch_split.gather(label_b))

        loss_K = losses(batch.label_B) if blend is None else blend.loss(losses)
        parts = {f"expert_{number}": loss for number, loss in enumerate(loss_K.detach(), start=1)}
        return StepOutput(self.total(loss_K), parts)


class BalPoeSettings(PriorExpertsSettings):
    """One expert per branch, with cross-entropy of z + tau log n for the tau of the expert, n images of each class.

    The mean of `taus` is 1 for predictions without bias towards any class. `mix` calibrates the experts, by default
    mixup with alpha 0.4; null switches it off. `sampler` draws the images of an epoch; `scale` multiplies the cosines
    of the experts' classifiers.
    """

    mix: _Mix | None = MixupSettings(name="input", alpha=0.4)
    taus: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2)] = (0.0, 1.0, 2.0)


@register_method("balpoe", BalPoeSettings)
class BalPoe(PriorExpertsMethod):
    """Balanced product of calibrated experts (Sanchez Aimar et al., CVPR 2023); the loss is the mean over the experts.

    The mean of the experts' logits is a product of their probabilities, hence the name.
    """

    def __init__(
        self, config: BalPoeSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        if network.branches > 1 and network.branches != len(config.taus):
            raise UserError(
                f"branches: {network.branches} does not fit taus: {list(config.taus)}; balpoe needs one branch per tau"
            )
        offset_KC = None if counts_C is None else torch.outer(torch.tensor(config.taus), log_prior(counts_C))
        super().__init__(config, network, num_classes, counts_C, offset_KC)

    def total(self, loss_K: torch.Tensor) -> torch.Tensor:
        return loss_K.mean()


class SadeSettings(PriorExpertsSettings):
    """Three experts, trained for the long-tailed, the uniform and the inversely long-tailed distribution.

    `inverse` weighs the log of the reversed prior in the last one's logits. `sampler` draws the images of an epoch;
    `scale` multiplies the cosines of the experts' classifiers; `mix` trains on blends of two images.
    """

    inverse: float = Field(2.0, ge=0)


@register_method("sade", SadeSettings)
class Sade(PriorExpertsMethod):
    """Skill-diverse experts of SADE (Zhang et al., NeurIPS 2022): softmax, balanced and inverse softmax, summed.

    With the prior p of the classes and their reversed prior r the experts have the cross-entropies of z, z + log p, and
    z + log p - inverse log r. Of the paper this is the training; its weights of the experts, fitted to unlabelled test
    images, are not part of it: the prediction is the mean, which is the paper's for a uniform test distribution.
    """

    def __init__(
        self, config: SadeSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        if network.branches not in (1, 3):
            raise UserError(f"branches: {network.branches} experts; sade has three, set branches.count: 3")
        offset_KC = None
        if counts_C is not None:
            prior_C = log_prior(counts_C)
            inverse_C = prior_C - config.inverse * reversed_prior(prior_C, counts_C)
            offset_KC = torch.stack([torch.zeros_like(prior_C), prior_C, inverse_C])
        super().__init__(config, network, num_classes, counts_C, offset_KC)
