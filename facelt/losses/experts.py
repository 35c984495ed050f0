"""Losses of multi-expert methods: knowledge distillation, RIDE, ResLT, and experts with class priors.

K experts or branches, B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.classification import LogitLoss


def distillation_kl(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Returns KL(softmax(teacher / T) || softmax(student / T)) per image, [B]; no gradient into the teacher.

    A temperature [C] divides the logits of each class by its own value. The usual factor T^2 is left to the caller: not
    every method has it.
    """
    student_BC = (student_BC / temperature).log_softmax(dim=-1)
    teacher_BC = (teacher_BC.detach() / temperature).log_softmax(dim=-1)
    return (teacher_BC.exp() * (teacher_BC - student_BC)).sum(dim=-1)


def diversity_temperature(counts_C: torch.Tensor, factor: float) -> torch.Tensor:
    """Returns (factor * C * n / N + 1 - factor) divided by its maximum, [C]: lower temperatures for rare classes."""
    relative_C = len(counts_C) * counts_C.double() / counts_C.sum()
    temperature_C = factor * relative_C + 1 - factor
    return (temperature_C / temperature_C.max()).to(torch.get_default_dtype())


def ride_loss(
    expert_KBC: torch.Tensor,
    label_B: torch.Tensor,
    expert_loss: LogitLoss,
    *,
    diversity: float,
    weight_C: torch.Tensor | None = None,
    temperature_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns sum_k expert_loss(z_k) + diversity * T^2 * KL(softmax(mean z / T) || softmax(z_k / T)), a scalar.

    A `diversity` below 0 moves the experts away from their mean, which gets no gradient. T is 1 without
    `temperature_C`; with it each class has its own, and T^2 is the square of their mean. This is the released code of
    RIDE (Wang et al., ICLR 2021); the paper sums the divergence over all pairs of experts instead.
    """
    classification = sum(expert_loss(logits_BC, label_B, weight_C) for logits_BC in expert_KBC)
    temperature_C = expert_KBC.new_ones(()) if temperature_C is None else temperature_C
    divergence_KB = distillation_kl(expert_KBC, expert_KBC.mean(dim=0), temperature_C)
    return classification + diversity * temperature_C.mean().square() * divergence_KB.mean(dim=1).sum()


def reslt_loss(
    branch_KBC: torch.Tensor, label_B: torch.Tensor, member_KC: torch.Tensor, *, branch_weight: float
) -> torch.Tensor:
    """Returns branch_weight * branches + (1 - branch_weight) * cross-entropy of the branches' sum, a scalar.

    `branches` is the cross-entropy of every branch on the images of its classes (`member_KC`, all classes for the first
    branch), summed and divided by the number of such images of all branches. Source: ResLT, Cui et al., TPAMI 2022.
    """
    member_KB = member_KC[:, label_B]
    label_KB = label_B.expand_as(member_KB)
    loss_KB = F.cross_entropy(branch_KBC.transpose(1, 2), label_KB, reduction="none")
    branches = (loss_KB * member_KB).sum() / member_KB.sum()
    return branch_weight * branches + (1 - branch_weight) * F.cross_entropy(branch_KBC.sum(dim=0), label_B)


def expert_cross_entropies(expert_KBC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of each expert, [K]."""
    label_KB = label_B.expand(len(expert_KBC), -1)
    return F.cross_entropy(expert_KBC.transpose(1, 2), label_KB, reduction="none").mean(dim=1)


def reversed_prior(value_C: torch.Tensor, counts_C: torch.Tensor) -> torch.Tensor:
    """Returns the values of a prior in reverse: the class of rank r by its images has that of the rank C - 1 - r, [C].

    Classes with equally many images are ranked by label. Source: the code of SADE, Zhang et al., NeurIPS 2022.
    """
    order_C = counts_C.argsort(stable=True)
    return torch.empty_like(value_C).index_copy_(0, order_C, value_C[order_C.flip(0)])
