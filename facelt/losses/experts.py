"""What a student takes over from a teacher's answers.

B images, C classes.

RIDE's loss: every expert is right by itself, and unlike the others (Wang et al., ICLR 2021).

K experts, B images of all ranks, C classes.

ResLT's loss: branches that answer for ever rarer classes, and their sum for all (Cui et al., TPAMI 2022).

K branches, B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F

from facelt.losses.classification import Loss


def distillation(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) of each image, [B]; no gradient into the teacher.

    The factor T^2 that keeps the gradient's size is the caller's: not every method has it. A temperature [C] divides
    each class's logits by its own.
    """
    student_BC = (student_BC / temperature).log_softmax(dim=-1)
    teacher_BC = (teacher_BC.detach() / temperature).log_softmax(dim=-1)
    return (teacher_BC.exp() * (teacher_BC - student_BC)).sum(dim=-1)


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


def reslt(
    branch_KBC: torch.Tensor, label_B: torch.Tensor, member_KC: torch.Tensor, *, individual: float
) -> torch.Tensor:
    """individual * own + (1 - individual) * cross-entropy of the branches' sum, a scalar.

    `member_KC` says which classes a branch answers for; the first one's are all. Own is the cross-entropy of every
    branch on the images of its classes, summed and divided by the number of such images of all branches.
    """
    member_KB = member_KC[:, label_B]
    label_KB = label_B.expand_as(member_KB)
    term_KB = F.cross_entropy(branch_KBC.transpose(1, 2), label_KB, reduction="none")
    own = (term_KB * member_KB).sum() / member_KB.sum()
    return individual * own + (1 - individual) * F.cross_entropy(branch_KBC.sum(dim=0), label_B)
