"""Softmax over the columns of all ranks: cross-entropy, and a read-out of one value an identity.

Both hold one B x C tensor from forward to backward; gradients of columns exist in blocks only.

B images of all ranks, C classes of this rank's range, D feature, N columns of a block, K images whose class is here.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from facelt.parallel.class_range import ClassRange
from facelt.parallel.class_sample import ClassSample
from facelt.parallel.collectives import all_reduce
from facelt.parallel.row_product import RowGradients, RowProduct, Rows, blocks

Classes = ClassRange | ClassSample
# A loss may make the own class harder: logits [K] of the own classes to those that are trained, with a gradient.
Harder = Callable[[torch.Tensor], torch.Tensor]


class _Own(NamedTuple):
    """Each image's own class, [B] each: whether and where it is here, its logit, the trained one's slope in it."""

    here_B: torch.Tensor
    local_B: torch.Tensor
    logit_B: torch.Tensor
    slope_B: torch.Tensor

    @classmethod
    def take(cls, column_BC: torch.Tensor, label_B: torch.Tensor, classes: Classes, harder: Harder | None) -> "_Own":
        """Reads the own logits and puts the harder ones in their place."""
        here_B = classes.holds(label_B)
        own = cls(here_B, classes.local(label_B), column_BC.new_zeros(len(label_B)), column_BC.new_ones(len(label_B)))
        (row_K,) = here_B.nonzero(as_tuple=True)
        place_K = own.local_B[row_K]
        logit_K = column_BC[row_K, place_K]
        own.logit_B[row_K] = logit_K
        if harder is not None:
            with torch.enable_grad():
                logit_K.requires_grad_()
                harder_K = harder(logit_K)
                (own.slope_B[row_K],) = torch.autograd.grad(harder_K.sum(), logit_K)
            column_BC[row_K, place_K] = harder_K.detach()
        return own

    def within(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Which own columns are in a block, and where in it, [B, 1] each."""
        inside_B = self.here_B & (self.local_B >= part.start) & (self.local_B < part.stop)
        return inside_B[:, None], (self.local_B - part.start).clamp(0, part.stop - part.start - 1)[:, None]


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the global batch; each rank's gradient is that of its own columns."""

    @staticmethod
    def forward(ctx, vector_BD, weight_CD, bias_C, unit: bool, label_B, classes: Classes, harder: Harder | None):
        product = RowProduct.of(vector_BD, Rows(weight_CD, bias_C, unit))
        column_BC = product.columns()
        own = _Own.take(column_BC, label_B, classes, harder)
        maximum_B = all_reduce(row_maximum(column_BC), dist.ReduceOp.MAX)
        total_B = torch.zeros_like(maximum_B)
        for part in blocks(weight_CD):
            total_B += (column_BC[:, part] - maximum_B[:, None]).exp_().sum(dim=1)
        target_B = column_BC.new_zeros(len(label_B))
        if len(classes):
            target_B = (column_BC.gather(1, own.local_B[:, None])[:, 0] - maximum_B).masked_fill(~own.here_B, 0)
        total_B, target_B = all_reduce(torch.stack([total_B, target_B]), dist.ReduceOp.SUM)
        ctx.save_for_backward(*product, *own, column_BC, maximum_B, total_B)
        return (total_B.log() - target_B).mean()

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        saved = ctx.saved_tensors
        product, own, (column_BC, maximum_B, total_B) = RowProduct(*saved[:4]), _Own(*saved[4:8]), saved[8:]
        gradients = RowGradients(product, ctx.needs_input_grad[:3])
        scale = (grad / len(total_B)).to(column_BC.dtype)
        for part in blocks(product.weight_CD):
            column_BN = column_BC[:, part]
            grad_BN = (column_BN - maximum_B[:, None]).exp_().mul_((scale / total_B)[:, None])
            inside_B1, place_B1 = own.within(part)
            share_B1 = grad_BN.gather(1, place_B1)
            own_B1 = torch.where(inside_B1, own.slope_B[:, None] * (share_B1 - scale), share_B1)
            logit_B1 = torch.where(inside_B1, own.logit_B[:, None], column_BN.gather(1, place_B1))
            grad_BN.scatter_(1, place_B1, own_B1)
            gradients.add(part, grad_BN, column_BN.scatter(1, place_B1, logit_B1))
        return *gradients.all(), *(None,) * 4


class _ReadOut(torch.autograd.Function):
    """This rank's part of softmax(z) V: its columns with its values."""

    @staticmethod
    def forward(ctx, vector_BD, weight_CD, bias_C, value_CD: torch.Tensor) -> torch.Tensor:
        product = RowProduct.of(vector_BD, Rows(weight_CD, bias_C))
        share_BC = product.columns()
        maximum_B1 = all_reduce(row_maximum(share_BC), dist.ReduceOp.MAX)[:, None]
        total_B = share_BC.new_zeros(len(share_BC))
        for part in blocks(weight_CD):
            total_B += share_BC[:, part].sub_(maximum_B1).exp_().sum(dim=1)
        # The sums divide what is read, not the shares.
        total_B1 = all_reduce(total_B, dist.ReduceOp.SUM)[:, None]
        read_BD = (share_BC @ value_CD).div_(total_B1)
        ctx.save_for_backward(*product, value_CD, share_BC, total_B1, read_BD)
        return read_BD

    @staticmethod
    def backward(ctx, grad_BD: torch.Tensor):
        *product, value_CD, share_BC, total_B1, read_BD = ctx.saved_tensors
        gradients = RowGradients(RowProduct(*product), ctx.needs_input_grad[:3])
        # sum_k p_k dL/dp_k is the product of what was read on all ranks with its gradient.
        mean_B1 = all_reduce((grad_BD * read_BD).sum(dim=1), dist.ReduceOp.SUM)[:, None] / total_B1
        scaled_BD = grad_BD / total_B1
        for part in blocks(value_CD):
            grad_BN = (scaled_BD @ value_CD[part].t()).sub_(mean_B1).mul_(share_BC[:, part])
            gradients.add(part, grad_BN)
        return *gradients.all(), None


def cross_entropy(
    vector_BD: torch.Tensor, rows: Rows, label_B: torch.Tensor, classes: Classes, harder: Harder | None = None
) -> torch.Tensor:
    """Mean cross-entropy of the softmax over the columns of all ranks, a scalar, the same on every rank."""
    return _CrossEntropy.apply(vector_BD, *rows, label_B, classes, harder)


def read_out(vector_BD: torch.Tensor, rows: Rows, value_CD: torch.Tensor) -> torch.Tensor:
    """This rank's share [B, D] of the values' mean, weighed by the softmax over the columns of all ranks.

    The values get no gradient. Raises ValueError for rows that count by their directions: their gradient would need
    the columns beside the shares.
    """
    if rows.unit:
        raise ValueError("a read-out needs rows as they are, not their directions")
    return _ReadOut.apply(vector_BD, rows.weight_CD, rows.bias_C, value_CD)


def row_maximum(column_BC: torch.Tensor) -> torch.Tensor:
    """Largest value of each row, -inf for a rank without classes."""
    if column_BC.shape[1]:
        return column_BC.amax(dim=1)
    return column_BC.new_full((len(column_BC),), -torch.inf)
