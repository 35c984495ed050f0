"""RIDE's loss: every expert is right by itself, and unlike the others (Wang et al., ICLR 2021).

K experts, B images of all ranks, C classes.
"""

import torch

from facelt.losses.distillation import distillation
from facelt.losses.loss import Loss


def diversity_temperature(counts_C: torch.Tensor, factor: float) -> torch.Tensor:
    """(factor * C * n / N + 1 - factor) / its maximum, [C]: rare classes have lower temperatures."""
    relative_C = len(counts_C) * counts_C.double() / counts_C.sum()
    temperature_C = factor * relative_C + 1 - factor
    return (temperature_C / temperature_C.max()).to(torch.get_default_dtype())


def ride(
    expert_KBC: torch.Tensor,
    label_B: torch.Tensor,
    individual: Loss,
    *,
    diversity: float,
    weight_C: torch.Tensor | None = None,
    temperature_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum over the experts of individual(z_i) + diversity * T^2 * KL(softmax(mean z / T) || softmax(z_i / T)).

    `diversity` is below 0, so that experts move away from their mean, into which no gradient flows. T is 1 without
    `temperature_C`; with it each class has its own and T^2 is the square of their mean. Released code; the paper has
    the divergence of every two experts instead.
    """
    right = sum(individual(logits_BC, label_B, weight_C) for logits_BC in expert_KBC)
    temperature_C = expert_KBC.new_ones(()) if temperature_C is None else temperature_C
    unlike_KB = distillation(expert_KBC, expert_KBC.mean(dim=0), temperature_C)
    return right + diversity * temperature_C.mean().square() * unlike_KB.mean(dim=1).sum()
