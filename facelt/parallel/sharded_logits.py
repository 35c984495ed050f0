"""Logits that live where their classes live, and the softmax over all of them.

b images of this rank, B of all ranks, C classes of this rank's range.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from facelt.parallel.class_range import ClassRange
from facelt.parallel.collectives import Shares, all_reduce, gather_ranks


class _SplitSoftmax(torch.autograd.Function):
    """softmax over the columns of all ranks; the backward sum over classes is all-reduced as well."""

    @staticmethod
    def forward(ctx, column_BC: torch.Tensor) -> torch.Tensor:
        maximum_B1 = all_reduce(_maximum(column_BC), dist.ReduceOp.MAX)[:, None]
        share_BC = (column_BC - maximum_B1).exp_()
        share_BC /= all_reduce(share_BC.sum(dim=1), dist.ReduceOp.SUM)[:, None]
        ctx.save_for_backward(share_BC)
        return share_BC

    @staticmethod
    def backward(ctx, grad_BC: torch.Tensor) -> torch.Tensor:
        (share_BC,) = ctx.saved_tensors
        product_BC = grad_BC * share_BC
        total_B1 = all_reduce(product_BC.sum(dim=1), dist.ReduceOp.SUM)[:, None]
        return product_BC.addcmul_(share_BC, total_B1, value=-1)


class _SplitCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the global batch; each rank's gradient is that of its own columns."""

    @staticmethod
    def forward(ctx, column_BC: torch.Tensor, label_B: torch.Tensor, classes: ClassRange) -> torch.Tensor:
        holds_B = classes.holds(label_B)
        local_B1 = classes.local(label_B)[:, None]
        maximum_B1 = all_reduce(_maximum(column_BC), dist.ReduceOp.MAX)[:, None]
        share_BC = column_BC - maximum_B1
        # A rank without classes has no column to read a target from.
        target_B = share_BC.gather(1, local_B1)[:, 0] if len(classes) else share_BC.new_zeros(len(label_B))
        target_B = all_reduce(target_B.masked_fill(~holds_B, 0), dist.ReduceOp.SUM)
        share_BC.exp_()
        total_B = all_reduce(share_BC.sum(dim=1), dist.ReduceOp.SUM)
        share_BC /= total_B[:, None]
        ctx.save_for_backward(share_BC, holds_B, local_B1)
        return (total_B.log() - target_B).mean()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        share_BC, holds_B, local_B1 = ctx.saved_tensors
        scale = grad / len(holds_B)
        grad_BC = share_BC * scale
        if grad_BC.shape[1]:
            grad_BC.scatter_add_(1, local_B1, (holds_B * -scale)[:, None].to(grad_BC.dtype))
        return grad_BC, None, None


@dataclass(frozen=True)
class ShardedLogits:
    """The columns of the global batch's logits this rank holds, and the reductions over all classes.

    Callers hand in and get back values of their own images. Only a few numbers an image travel, never a B x C matrix.
    One process holds one range, of all classes.
    """

    column_BC: torch.Tensor
    classes: ClassRange
    shares: Shares

    def __post_init__(self) -> None:
        if self.column_BC.shape != (self.shares.total, len(self.classes)):
            expected = [self.shares.total, len(self.classes)]
            raise ValueError(f"logits of shape {list(self.column_BC.shape)}, expected {expected}")

    def cross_entropy(self, label_b: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the global batch's softmax over all classes, a scalar, the same on every rank."""
        return _SplitCrossEntropy.apply(self.column_BC, self.shares.gather(label_b), self.classes)

    def softmax(self) -> torch.Tensor:
        """This rank's columns of the softmax over all classes, [B, C]."""
        return _SplitSoftmax.apply(self.column_BC)

    def argmax(self) -> torch.Tensor:
        """The class with the largest logit, [b]; the first one on a tie."""
        best_WB = gather_ranks(_maximum(self.column_BC.detach()))
        own_B = self.column_BC.argmax(dim=1) if len(self.classes) else best_WB.new_zeros(best_WB.shape[1]).long()
        winner_WB = gather_ranks(own_B + self.classes.first)
        return winner_WB.gather(0, best_WB.argmax(dim=0)[None])[0][self.shares.own]

    def maximum(self) -> torch.Tensor:
        """The largest logit, [b]; no gradient."""
        return all_reduce(_maximum(self.column_BC.detach()), dist.ReduceOp.MAX)[self.shares.own]


def _maximum(column_BC: torch.Tensor) -> torch.Tensor:
    """Largest value of each row, -inf for a rank without classes."""
    if column_BC.shape[1]:
        return column_BC.amax(dim=1)
    return column_BC.new_full((len(column_BC),), -torch.inf)
