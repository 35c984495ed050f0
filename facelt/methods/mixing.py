"""Mixing of two images: input mixup, manifold mixup, Remix. b images of this rank, C classes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import register_mixing
from facelt.methods.base import StepContext


@dataclass(frozen=True)
class Blend:
    """Partners and labels of a blended batch: each image with weight `lam`, its partner with 1 - `lam`."""

    lam: float
    partner_b: torch.Tensor
    label_b: torch.Tensor
    partner_label_b: torch.Tensor

    def mix(self, value_b: torch.Tensor) -> torch.Tensor:
        """Returns blended images or features, [b, ...]."""
        return self.lam * value_b + (1 - self.lam) * value_b[self.partner_b]

    def loss(self, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns lam L(label) + (1 - lam) L(partner label) for a loss L of labels [b]."""
        return self.lam * loss_of(self.label_b) + (1 - self.lam) * loss_of(self.partner_label_b)


class MixupSettings(NamedSettings):
    """The weight of the first image is drawn from Beta(`alpha`, `alpha`)."""

    alpha: float = Field(1.0, gt=0)


@register_mixing("input", MixupSettings)
class Mixup(nn.Module):
    """Input mixup (Zhang et al., ICLR 2018), with one weight per step drawn from Beta(alpha, alpha).

    The weight is the same on all ranks. Partners are a permutation of the rank's own images; they depend on the number
    of ranks and micro-batches.
    """

    on_features = False

    def __init__(self, counts_C: torch.Tensor | None, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def draw(self, label_b: torch.Tensor, context: StepContext, generator: torch.Generator) -> Blend:
        """Returns the blend of a step; `generator` is on the device of the labels."""
        lam = self._sample_lam(context)
        partner_b = torch.randperm(len(label_b), generator=generator, device=label_b.device)
        return Blend(lam, partner_b, *self.labels(lam, label_b, label_b[partner_b]))

    def labels(
        self, lam: float, label_b: torch.Tensor, partner_label_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the labels weighted by lam and by 1 - lam."""
        return label_b, partner_label_b

    def _sample_lam(self, context: StepContext) -> float:
        # torch.distributions takes no generator.
        with torch.random.fork_rng(devices=[]):
            seed = torch.randint(2**63 - 1, (), generator=context.generator("cpu", same_on_all_ranks=True))
            torch.default_generator.manual_seed(seed.item())
            return torch.distributions.Beta(self.alpha, self.alpha).sample().item()


@register_mixing("manifold", MixupSettings)
class ManifoldMixup(Mixup):
    """Manifold mixup (Verma et al., ICML 2019) of the feature before the head."""

    on_features = True


class RemixSettings(MixupSettings):
    """The label is the rarer class alone if the other has `kappa` times its images and a weight below `tau`."""

    kappa: float = Field(3.0, gt=1)
    tau: float = Field(0.5, ge=0, le=1)


@register_mixing("remix", RemixSettings)
class Remix(Mixup):
    """Input mixup whose labels favour the rarer class (Chou et al., ECCV 2020 workshop, equation 10).

    If the class of one image has at least `kappa` times the training images of the other, and its weight is below
    `tau`, the label of the blend is the other class alone.
    """

    counts_C: torch.Tensor | None

    def __init__(self, counts_C: torch.Tensor | None, *, alpha: float, kappa: float, tau: float) -> None:
        super().__init__(counts_C, alpha=alpha)
        self.register_buffer("counts_C", counts_C, persistent=False)
        self.kappa, self.tau = kappa, tau

    def labels(
        self, lam: float, label_b: torch.Tensor, partner_label_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count_b, partner_count_b = self.counts_C[label_b], self.counts_C[partner_label_b]
        partner_only_b = (count_b >= self.kappa * partner_count_b) & (lam < self.tau)
        first_only_b = (partner_count_b >= self.kappa * count_b) & (1 - lam < self.tau)
        return (
            torch.where(partner_only_b, partner_label_b, label_b),
            torch.where(first_only_b, label_b, partner_label_b),
        )
