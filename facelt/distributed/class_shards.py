"""The contiguous range of classes one rank holds.

Some classes of a range, drawn for one step.

B images of all ranks, C classes of this rank's range, K of them drawn.

Which entries of a module's state are split over the ranks.
"""

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import nn

from facelt.distributed.comm import rank, world_size

# Rows drawn at once: every rank draws all rows in these pieces and keeps its own, so that weights begin the same on any
# number of ranks.
_INIT_ROWS = 1 << 14


@dataclass(frozen=True)
class ClassRange:
    """Classes `first` to `stop - 1` of `total`."""

    first: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.stop <= self.total:
            raise ValueError(f"not a range of classes: {self.first} to {self.stop} of {self.total}")

    @classmethod
    def of_rank(cls, total: int, rank: int, world: int) -> "ClassRange":
        """The range of one rank; `world` need not divide `total`.

        Ranges are those of torch.chunk, which is how torch's own sharded tensors are cut: all of one size but for the
        last, and empty ones after it where there are more ranks than pieces.
        """
        size = -(-total // world)
        return cls(min(rank * size, total), min((rank + 1) * size, total), total)

    @classmethod
    def local(cls, total: int) -> "ClassRange":
        """This rank's range; a single process holds all classes."""
        return cls.of_rank(total, rank(), world_size())

    def __len__(self) -> int:
        return self.stop - self.first

    def contains(self, label_B: torch.Tensor) -> torch.Tensor:
        """Which labels are in the range, bool [B]."""
        return (label_B >= self.first) & (label_B < self.stop)

    def local_index(self, label_B: torch.Tensor) -> torch.Tensor:
        """Labels as positions in the range, clamped into it where they are outside: mask with `holds`."""
        return (label_B - self.first).clamp(0, max(len(self) - 1, 0))

    def uniform_rows(self, dim: int, bound: float) -> torch.Tensor:
        """This range's rows [C, D] of uniform values in (-bound, bound), from torch's random state."""
        rows_CD = torch.empty(len(self), dim)
        for start in range(0, self.total, _INIT_ROWS):
            stop = min(start + _INIT_ROWS, self.total)
            drawn = torch.empty(stop - start, dim).uniform_(-bound, bound)
            first, last = max(start, self.first), min(stop, self.stop)
            if first < last:
                rows_CD[first - self.first : last - self.first] = drawn[first - start : last - start]
        return rows_CD


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
        positive_U = (label_B[classes.contains(label_B)] - classes.first).unique()
        key_C[positive_U] = 2.0
        size = max(math.ceil(rate * len(classes)), len(positive_U))
        return cls(classes, key_C.topk(size, sorted=False).indices.sort().values)

    def __len__(self) -> int:
        return len(self.position_K)

    def contains(self, label_B: torch.Tensor) -> torch.Tensor:
        """Which labels are in the range, bool [B]."""
        return self.range.contains(label_B)

    def local_index(self, label_B: torch.Tensor) -> torch.Tensor:
        """Labels as places among the drawn, some place for those outside the range: mask with `holds`."""
        return torch.searchsorted(self.position_K, self.range.local_index(label_B)).clamp(0, max(len(self) - 1, 0))


def sharded_entries(module: nn.Module) -> dict[str, ClassRange]:
    """The range of each state entry whose rows are classes, by the entry's name.

    A module whose `classes` is a ClassRange holds nothing but such rows.
    """
    found = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        classes = getattr(part, "classes", None)
        if isinstance(classes, ClassRange):
            own = chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
            found |= {f"{prefix}.{name}" if prefix else name: classes for name, _ in own}
    return found
