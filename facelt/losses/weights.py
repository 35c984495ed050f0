"""Class weights from the training images of each class.

C classes.
"""

import torch

from facelt.losses.loss import seen


def class_balanced(counts_C: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """(1 - beta) / (1 - beta^n), scaled to the sum C (Cui et al., CVPR 2019), [C]."""
    weight_C = (1 - beta) / (1 - beta ** seen(counts_C))
    return (weight_C * len(weight_C) / weight_C.sum()).to(torch.get_default_dtype())


def cost_sensitive(counts_C: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """(n_min / n)^gamma, [C]."""
    count_C = seen(counts_C)
    return (count_C.min() / count_C).pow(gamma).to(torch.get_default_dtype())
