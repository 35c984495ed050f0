"""The contiguous range of classes one rank holds."""

from dataclasses import dataclass

import torch

from facelt.parallel.ranks import rank, world

# Rows drawn at once: every rank draws all rows in these pieces and keeps its own, so that weights begin the same on any
# number of ranks.
ROWS_DRAWN = 1 << 14


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
    def of(cls, total: int, rank: int, world: int) -> "ClassRange":
        """The range of one rank; `world` need not divide `total`.

        Ranges are those of torch.chunk, which is how torch's own sharded tensors are cut: all of one size but for the
        last, and empty ones after it where there are more ranks than pieces.
        """
        size = -(-total // world)
        return cls(min(rank * size, total), min((rank + 1) * size, total), total)

    @classmethod
    def own(cls, total: int) -> "ClassRange":
        """This rank's range; a single process holds all classes."""
        return cls.of(total, rank(), world())

    def __len__(self) -> int:
        return self.stop - self.first

    def holds(self, label_B: torch.Tensor) -> torch.Tensor:
        """Which labels are in the range, bool [B]."""
        return (label_B >= self.first) & (label_B < self.stop)

    def local(self, label_B: torch.Tensor) -> torch.Tensor:
        """Labels as positions in the range, clamped into it where they are outside: mask with `holds`."""
        return (label_B - self.first).clamp(0, max(len(self) - 1, 0))

    def uniform_rows(self, dim: int, bound: float) -> torch.Tensor:
        """This range's rows [C, D] of uniform values in (-bound, bound), from torch's random state."""
        rows_CD = torch.empty(len(self), dim)
        for start in range(0, self.total, ROWS_DRAWN):
            stop = min(start + ROWS_DRAWN, self.total)
            drawn = torch.empty(stop - start, dim).uniform_(-bound, bound)
            first, last = max(start, self.first), min(stop, self.stop)
            if first < last:
                rows_CD[first - self.first : last - self.first] = drawn[first - start : last - start]
        return rows_CD
