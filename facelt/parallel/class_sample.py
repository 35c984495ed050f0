"""Some classes of a range, drawn for one step.

B images of all ranks, C classes of this rank's range, K of them drawn.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from facelt.parallel.class_range import ClassRange


@dataclass(frozen=True, eq=False)
class ClassSample:
    """A range's classes at `position_K`, rising. It holds the labels it was drawn for, and answers for no others."""

    range: ClassRange
    position_K: torch.Tensor

    @classmethod
    def draw(cls, classes: ClassRange, label_B: torch.Tensor, rate: float, step: int) -> "ClassSample":
        """Every class of the global batch and others drawn uniformly: ceil(rate * C) in all, more where the batch has.

        This is Partial FC's draw (An et al., CVPR 2022). It is a function of torch's seed, the step and the range: it
        changes no generator, and a run that goes on draws what it would have drawn.
        """
        place = (torch.initial_seed(), step, classes.first, 1)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        generator = torch.Generator(label_B.device).manual_seed(seed)
        key_C = torch.rand(len(classes), generator=generator, device=label_B.device)
        positive_U = (label_B[classes.holds(label_B)] - classes.first).unique()
        key_C[positive_U] = 2.0
        size = max(math.ceil(rate * len(classes)), len(positive_U))
        return cls(classes, key_C.topk(size, sorted=False).indices.sort().values)

    def __len__(self) -> int:
        return len(self.position_K)

    def holds(self, label_B: torch.Tensor) -> torch.Tensor:
        """Which labels are in the range, bool [B]."""
        return self.range.holds(label_B)

    def local(self, label_B: torch.Tensor) -> torch.Tensor:
        """Labels as places among the drawn, some place for those outside the range: mask with `holds`."""
        return torch.searchsorted(self.position_K, self.range.local(label_B)).clamp(0, max(len(self) - 1, 0))
