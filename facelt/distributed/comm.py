"""Rank and world size, and collectives with gradients between ranks that each hold a part of the batch.

Every rank differentiates the same global loss. Its own classes contribute one part of it, so the gradient of a gathered
batch is summed over the ranks, and the gradient of a sum over the ranks is passed to each of them. With one rank all of
these are the identity.

b images of this rank, B of all ranks, W ranks, D feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

# torch 2.14 renamed these collectives; earlier versions have the old names only.
_ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
_REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"

_Collective = Callable[[torch.Tensor], torch.Tensor]


def world_size() -> int:
    """Returns the number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this rank, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_distributed() -> bool:
    """Returns whether there is more than one rank."""
    return world_size() > 1


@dataclass(frozen=True)
class BatchSplit:
    """Number of images of the global batch on each rank, in rank order."""

    sizes: tuple[int, ...]

    @classmethod
    def gather_sizes(cls, size: int) -> "BatchSplit":
        """Gathers every rank's number of images on the CPU, so that no GPU is waited for; `size` is this rank's."""
        if not is_distributed():
            return cls((size,))
        return cls(tuple(_all_gather(torch.tensor([size])).tolist()))

    @property
    def total(self) -> int:
        """B, the images of all ranks."""
        return sum(self.sizes)

    @property
    def local_slice(self) -> slice:
        """Positions of this rank's images in the global batch."""
        first = sum(self.sizes[: rank()])
        return slice(first, first + self.sizes[rank()])

    def gather(self, value_b: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks in rank order, [B, ...]; no gradient."""
        if not is_distributed():
            return value_b
        # Collectives need equal sizes: shorter parts are padded.
        longest = max(self.sizes)
        gathered = _all_gather(_pad(value_b, longest))
        if min(self.sizes) == longest:
            return gathered
        return torch.cat([rows[:size] for rows, size in zip(gathered.split(longest), self.sizes, strict=True)])

    def reduce_scatter(self, value_B: torch.Tensor) -> torch.Tensor:
        """Returns this rank's rows of the sum over ranks of [B, ...]; no gradient."""
        if not is_distributed():
            return value_B
        longest = max(self.sizes)
        padded = torch.cat([_pad(rows, longest) for rows in value_B.split(self.sizes)])
        local = padded.new_empty((longest, *padded.shape[1:]))
        getattr(dist, _REDUCE_SCATTER)(local, padded)
        return local[: self.sizes[rank()]]


def _all_gather(value_b: torch.Tensor) -> torch.Tensor:
    """Concatenates the values of all ranks, which have one shape, along the first dimension."""
    gathered = value_b.new_empty((world_size() * len(value_b), *value_b.shape[1:]))
    getattr(dist, _ALL_GATHER)(gathered, value_b.contiguous())
    return gathered


def _pad(value_b: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(value_b)
    return F.pad(value_b, (0, 0) * (value_b.dim() - 1) + (0, missing)) if missing else value_b


class _LinearCollective(torch.autograd.Function):
    """A linear map between the ranks; its gradient takes the given map back."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, collective: _Collective, grad_collective: _Collective) -> torch.Tensor:
        ctx.grad_collective = grad_collective
        return collective(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.grad_collective(grad), None, None


def gather_batch(value_b: torch.Tensor, batch_split: BatchSplit) -> torch.Tensor:
    """Returns the rows of all ranks, [B, ...]; their gradient is summed over the ranks.

    Traffic: W * b * D values forward, the same backward.
    """
    if not is_distributed():
        return value_b
    return _LinearCollective.apply(value_b, batch_split.gather, batch_split.reduce_scatter)


def gather_replicated(value_b: torch.Tensor, batch_split: BatchSplit) -> torch.Tensor:
    """Returns the rows of all ranks, [B, ...], for a loss that every rank computes in full.

    Each rank already has the full gradient, of which it takes its own rows. Traffic: W * b * D values forward.
    """
    if not is_distributed():
        return value_b
    return _LinearCollective.apply(value_b, batch_split.gather, lambda grad_B: grad_B[batch_split.local_slice])


def reduce_scatter_batch(value_B: torch.Tensor, batch_split: BatchSplit) -> torch.Tensor:
    """Returns this rank's rows [b, ...] of the sum over ranks of [B, ...].

    Traffic: W * b * D values forward, the same backward.
    """
    if not is_distributed():
        return value_B
    return _LinearCollective.apply(value_B, batch_split.reduce_scatter, batch_split.gather)


def sum_grad_over_ranks(parameter: torch.Tensor) -> torch.Tensor:
    """Returns a replicated parameter, applied to this rank's images, whose gradient is summed over the ranks."""
    if not is_distributed():
        return parameter
    return _LinearCollective.apply(
        parameter, lambda value: value.view_as(value), lambda grad: all_reduce(grad.clone(), dist.ReduceOp.SUM)
    )


def all_reduce(value: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
    """Reduces over the ranks (sum, maximum or minimum), in place; no gradient."""
    if is_distributed():
        dist.all_reduce(value, operation)
    return value


def stack_ranks(value_B: torch.Tensor) -> torch.Tensor:
    """Returns every rank's values [W, B] for the same global batch; no gradient."""
    return _all_gather(value_B[None]) if is_distributed() else value_B[None]
