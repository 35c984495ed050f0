"""Logits that live where their classes live.

B batch, C classes of this rank's range.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from facelt.parallel.class_range import ClassRange


@dataclass(frozen=True)
class ShardedLogits:
    """The columns of the logits this rank holds, and the reductions over all classes.

    Callers ask for reductions only, so that nothing of size B x C has to be gathered. One process holds one range.
    """

    column_BC: torch.Tensor
    classes: ClassRange

    def __post_init__(self) -> None:
        if self.column_BC.shape[1] != len(self.classes):
            raise ValueError(f"{self.column_BC.shape[1]} columns for a range of {len(self.classes)} classes")
        if len(self.classes) != self.classes.total:
            raise ValueError("a range of some classes needs the other ranks' columns; one process holds all classes")

    def cross_entropy(self, label_B: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the softmax over all classes, a scalar."""
        return F.cross_entropy(self.column_BC, label_B)

    def argmax(self) -> torch.Tensor:
        """The class with the largest logit, [B]; the first one on a tie."""
        return self.column_BC.argmax(dim=1)

    def maximum(self) -> torch.Tensor:
        """The largest logit, [B]."""
        return self.column_BC.amax(dim=1)
