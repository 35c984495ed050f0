"""How many ranks there are and which one this is; one process without torch.distributed is rank 0 of 1.

Collectives with gradients, between ranks that each hold a share of the batch and a range of the classes.

Every rank differentiates the same global loss. What it computes from its own classes is a part of it, so the gradient
of a gathered batch is summed over the ranks on its way back, and the gradient of a sum over the ranks goes to each of
them. With one rank all of these are the identity.

b images of this rank, B of all ranks, W ranks, D feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F


def is_split() -> bool:
    """Whether more than one rank shares the work."""
    return world() > 1


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


Exchange = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shares:
    """How many images of the global batch each rank holds, in rank order."""

    sizes: tuple[int, ...]

    @classmethod
    def agree(cls, own: int, device: torch.device) -> "Shares":
        """Asks every rank for its number of images."""
        if not is_split():
            return cls((own,))
        size_W = torch.empty(world(), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(size_W, torch.tensor([own], device=device))
        return cls(tuple(size_W.tolist()))

    @property
    def total(self) -> int:
        """B, the images of all ranks."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """Where this rank's images are in the global batch."""
        first = sum(self.sizes[: rank()])
        return slice(first, first + self.sizes[rank()])

    def gather(self, value_b: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks in rank order, [B, ...]; no gradient."""
        if not is_split():
            return value_b
        # Collectives want equal shares: the shorter ones travel padded.
        longest = max(self.sizes)
        padded = _pad(value_b, longest)
        everyone = padded.new_empty((world() * longest, *padded.shape[1:]))
        dist.all_gather_into_tensor(everyone, padded.contiguous())
        if min(self.sizes) == longest:
            return everyone
        return torch.cat([rows[:size] for rows, size in zip(everyone.split(longest), self.sizes, strict=True)])

    def scatter_sum(self, value_B: torch.Tensor) -> torch.Tensor:
        """This rank's rows of the sum of every rank's [B, ...]; no gradient."""
        if not is_split():
            return value_B
        longest = max(self.sizes)
        padded = torch.cat([_pad(rows, longest) for rows in value_B.split(self.sizes)])
        own = padded.new_empty((longest, *padded.shape[1:]))
        dist.reduce_scatter_tensor(own, padded)
        return own[: self.sizes[rank()]]


def _pad(value_b: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(value_b)
    return F.pad(value_b, (0, 0) * (value_b.dim() - 1) + (0, missing)) if missing else value_b


class _Exchange(torch.autograd.Function):
    """A linear map between the ranks and, for its gradient, the map back."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, there: Exchange, back: Exchange) -> torch.Tensor:
        ctx.back = back
        return there(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.back(grad), None, None


def gather_batch(value_b: torch.Tensor, shares: Shares) -> torch.Tensor:
    """The images of all ranks, [B, ...], from this rank's [b, ...]. Moves W * b * D values, and as many back."""
    return _Exchange.apply(value_b, shares.gather, shares.scatter_sum) if is_split() else value_b


def gather_whole(value_b: torch.Tensor, shares: Shares) -> torch.Tensor:
    """The rows of all ranks, [B, ...], for a loss that every rank computes whole: the gradient is the own rows' of it.

    Moves W * b * D values, and none back.
    """
    return _Exchange.apply(value_b, shares.gather, lambda grad_B: grad_B[shares.own]) if is_split() else value_b


def scatter_sum(value_B: torch.Tensor, shares: Shares) -> torch.Tensor:
    """This rank's rows [b, ...] of the sum over ranks of [B, ...]. Moves W * b * D values, and as many back."""
    return _Exchange.apply(value_B, shares.scatter_sum, shares.gather) if is_split() else value_B


def replicated(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter every rank holds whole and applies to its own images: its gradient is summed over the ranks."""
    return _Exchange.apply(parameter, _same, _sum_over_ranks) if is_split() else parameter


def _same(value: torch.Tensor) -> torch.Tensor:
    return value.view_as(value)


def _sum_over_ranks(grad: torch.Tensor) -> torch.Tensor:
    return all_reduce(grad.clone(), dist.ReduceOp.SUM)


def all_reduce(value: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
    """The sum, maximum or minimum over the ranks, in place; no gradient."""
    if is_split():
        dist.all_reduce(value, operation)
    return value


def gather_ranks(value_B: torch.Tensor) -> torch.Tensor:
    """Every rank's values [W, B] for the same global batch; no gradient."""
    if not is_split():
        return value_B[None]
    everyone = value_B.new_empty((world(), *value_B.shape))
    dist.all_gather_into_tensor(everyone, value_B.contiguous()[None])
    return everyone
