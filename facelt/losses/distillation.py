"""What a student takes over from a teacher's answers.

B images, C classes.
"""

import torch


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
