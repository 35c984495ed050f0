"""Class sharding: the contiguous range of classes on each rank, samples of it, and sharded state entries.

B images of all ranks, C classes of this rank's range, K of them sampled, D feature.
"""

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import nn

from facelt.distributed.comm import rank, world_size

# Every rank draws all initial rows, this many at a time, and keeps its own: weights start the same on any number of
# ranks.
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
    def of_rank(cls, total: int, rank: int, world_size: int) -> "ClassRange":
        """Returns the range of one rank; `world_size` need not divide `total`.

        The ranges are those of torch.chunk, as of torch's own sharded tensors: equal sizes except for the last one,
        then empty ranges if there are more ranks than chunks.
        """
        size = -(-total // world_size)
        return cls(min(rank * size, total), min((rank + 1) * size, total), total)

    @classmethod
    def local(cls, total: int) -> "ClassRange":
        """Returns this rank's range; a single process holds all classes."""
        return cls.of_rank(total, rank(), world_size())

    def __len__(self) -> int:
        return self.stop - self.first

    def contains(self, label_B: torch.Tensor) -> torch.Tensor:
        """Returns which labels are in the range, bool [B]."""
        return (label_B >= self.first) & (label_B < self.stop)

    def local_index(self, label_B: torch.Tensor) -> torch.Tensor:
        """Returns positions in the range; labels outside are clamped into it and to be masked by `contains`."""
        return (label_B - self.first).clamp(0, max(len(self) - 1, 0))

    def rows_of(self, row_CD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """Returns the rows of the labels, [B, D]; 0 for labels outside the range."""
        if not len(self):
            return row_CD.new_zeros(len(label_B), row_CD.shape[1])
        return row_CD[self.local_index(label_B)].masked_fill_(~self.contains(label_B)[:, None], 0)

    def occurring(self, label_B: torch.Tensor) -> torch.Tensor:
        """Returns which classes of the range are among the labels, bool [C]."""
        # Labels outside the range mark one entry more, which is cut off.
        index_B = torch.where(self.contains(label_B), label_B - self.first, len(self))
        return torch.zeros(len(self) + 1, dtype=torch.bool, device=label_B.device).index_fill_(0, index_B, True)[:-1]

    def select(self, value_C: torch.Tensor) -> torch.Tensor:
        """Returns the values of these classes from those of the range: all of them, [C]."""
        return value_C

    def check_labels(self, label_B: torch.Tensor) -> None:
        """Raises IndexError for a label outside 0..total-1, as F.cross_entropy does.

        On a GPU this is a device-side assertion, again as in F.cross_entropy: no synchronisation with the host.
        """
        is_valid = ((label_B >= 0) & (label_B < self.total)).all()
        message = f"a label is out of bounds: labels of {self.total} classes are 0 to {self.total - 1}"
        if label_B.device.type != "cpu":
            torch._assert_async(is_valid, message)
        elif not is_valid:
            raise IndexError(message)

    def uniform_rows(self, dim: int, bound: float) -> torch.Tensor:
        """Returns this range's rows [C, D] of uniform values in (-bound, bound), drawn from torch's random state."""
        row_CD = torch.empty(len(self), dim)
        for start in range(0, self.total, _INIT_ROWS):
            stop = min(start + _INIT_ROWS, self.total)
            drawn = torch.empty(stop - start, dim).uniform_(-bound, bound)
            first, last = max(start, self.first), min(stop, self.stop)
            if first < last:
                row_CD[first - self.first : last - self.first] = drawn[first - start : last - start]
        return row_CD


@dataclass(frozen=True, eq=False)
class ClassSample:
    """A sample of a range's classes: those at `position_K`, ascending.

    It contains the labels it was drawn for; other labels must not be looked up.
    """

    range: ClassRange
    position_K: torch.Tensor

    @classmethod
    def draw(cls, classes: ClassRange, label_B: torch.Tensor, rate: float, step: int) -> "ClassSample":
        """Samples every class of the global batch and further classes uniformly: ceil(rate * C), or B if that is more.

        This is the sampling of Partial FC (An et al., CVPR 2022). It depends only on torch's seed, the step and the
        range: no generator advances, and a resumed run draws the same samples.
        """
        key = (torch.initial_seed(), step, classes.first, 1)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        generator = torch.Generator(label_B.device).manual_seed(seed)
        priority_C = torch.rand(len(classes), generator=generator, device=label_B.device)
        priority_C.masked_fill_(classes.occurring(label_B), 2.0)
        # The number of the batch's classes is known on the device only; it is at most B.
        size = min(max(math.ceil(rate * len(classes)), len(label_B)), len(classes))
        return cls(classes, priority_C.topk(size, sorted=False).indices.sort().values)

    def __len__(self) -> int:
        return len(self.position_K)

    def contains(self, label_B: torch.Tensor) -> torch.Tensor:
        """Returns which labels are in the range, bool [B]."""
        return self.range.contains(label_B)

    def local_index(self, label_B: torch.Tensor) -> torch.Tensor:
        """Returns positions in the sample; those of labels outside the range are to be masked by `contains`."""
        return torch.searchsorted(self.position_K, self.range.local_index(label_B)).clamp(0, max(len(self) - 1, 0))

    def select(self, value_C: torch.Tensor) -> torch.Tensor:
        """Returns the values of the sampled classes from those of the range, [K]."""
        return value_C[self.position_K]

    def check_labels(self, label_B: torch.Tensor) -> None:
        """As `ClassRange.check_labels`."""
        self.range.check_labels(label_B)


def sharded_entries(module: nn.Module) -> dict[str, ClassRange]:
    """Returns the class range of each state entry whose rows are classes, by the entry's name.

    These are all entries of a module whose `classes` is a ClassRange, without those of its children.
    """
    ranges = {}
    for prefix, child in module.named_modules(remove_duplicate=False):
        classes = getattr(child, "classes", None)
        if isinstance(classes, ClassRange):
            entries = chain(child.named_parameters(recurse=False), child.named_buffers(recurse=False))
            ranges |= {f"{prefix}.{name}" if prefix else name: classes for name, _ in entries}
    return ranges
