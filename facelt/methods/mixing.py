"""Mixing: steps on blends of two images, which answer for both labels.

b images of this rank, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from facelt.methods.base import Progress


@dataclass(frozen=True)
class Blend:
    """Each image with the share `lam` and its partner with the rest, and the labels that answer for these shares."""

    lam: float
    partner_b: torch.Tensor
    label_b: torch.Tensor
    partner_label_b: torch.Tensor

    def of(self, value_b: torch.Tensor) -> torch.Tensor:
        """Images or features, [b, ...], blended."""
        return self.lam * value_b + (1 - self.lam) * value_b[self.partner_b]

    def loss(self, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """lam L(label) + (1 - lam) L(partner's label), whatever the loss L of labels [b] is."""
        return self.lam * loss_of(self.label_b) + (1 - self.lam) * loss_of(self.partner_label_b)


class Mixup(nn.Module):
    """Input mixup (Zhang et al., ICLR 2018): images blended, one share a step drawn from Beta(alpha, alpha).

    The share is the same on all ranks. Partners are an order of the rank's own images, drawn by each for itself, so
    with other numbers of ranks, or of micro-batches, other images meet.
    """

    on_features = False

    def __init__(self, counts_C: torch.Tensor | None, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def draw(self, label_b: torch.Tensor, progress: Progress, generator: torch.Generator) -> Blend:
        """The step's blend; the partners are drawn from a generator of the CPU."""
        lam = self._share(progress)
        partner_b = torch.randperm(len(label_b), generator=generator).to(label_b.device)
        return Blend(lam, partner_b, *self.labels(lam, label_b, label_b[partner_b]))

    def labels(
        self, lam: float, label_b: torch.Tensor, partner_label_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which labels answer for lam and for 1 - lam."""
        return label_b, partner_label_b

    def _share(self, progress: Progress) -> float:
        # Beta takes no generator.
        with torch.random.fork_rng(devices=[]):
            seed = torch.randint(2**63 - 1, (), generator=progress.generator("cpu", alike=True))
            torch.default_generator.manual_seed(seed.item())
            return torch.distributions.Beta(self.alpha, self.alpha).sample().item()


class ManifoldMixup(Mixup):
    """Manifold mixup (Verma et al., ICML 2019) at one place, the feature that the head reads."""

    on_features = True


class Remix(Mixup):
    """Input mixup whose labels favour the rare class (Chou et al., ECCV 2020 workshop, equation 10).

    Where one image's class has at least `kappa` times the training images of the other's, and less than `tau` of the
    blend, the other's label answers for all of it.
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
        own_only_b = (partner_count_b >= self.kappa * count_b) & (1 - lam < self.tau)
        return (
            torch.where(partner_only_b, partner_label_b, label_b),
            torch.where(own_only_b, label_b, partner_label_b),
        )


MIXINGS: dict[str, type[Mixup]] = {"input": Mixup, "manifold": ManifoldMixup, "remix": Remix}
"""Ways to mix by name; each is built as (counts_C, **options)."""
