"""The contiguous range of classes one rank holds."""

from dataclasses import dataclass


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
    def whole(cls, total: int) -> "ClassRange":
        """All classes: what a single process holds."""
        return cls(0, total, total)

    def __len__(self) -> int:
        return self.stop - self.first
