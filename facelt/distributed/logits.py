"""Products of a batch with one row an identity, and their gradients, a block of columns at a time.

Between the tens of thousands of columns of a product and their gradients nothing but one block is made.

B batch, C identities of this rank's range, D feature, N columns of a block.

Softmax over the columns of all ranks: cross-entropy, and a read-out of one value an identity.

Both hold one B x C tensor from forward to backward; gradients of columns exist in blocks only.

B images of all ranks, C classes of this rank's range, D feature, N columns of a block, K images whose class is here.

Logits that live where their classes live, and the reductions over all of them.

b images of this rank, B of all ranks, C classes of this rank's range or, in `full_BC`, of all.

A rank's own features beside those of all ranks.

b images of this rank, B of all ranks, D feature.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.distributed as dist

from facelt.distributed.class_shards import ClassRange, ClassSample
from facelt.distributed.comm import (
    BatchSplit,
    all_reduce,
    gather_batch,
    gather_replicated,
    reduce_scatter_batch,
    stack_ranks,
    world_size,
)

MIN_NORM = 1e-12
# A block of a batch of 64 stays in a processor's cache; a GPU wants work for all its units.
BLOCK_COLUMNS = {"cpu": 1 << 12, "cuda": 1 << 16}


def row_blocks(rows_CD: torch.Tensor) -> Iterator[slice]:
    """The rows' positions in blocks."""
    size = BLOCK_COLUMNS.get(rows_CD.device.type, 1 << 16)
    return (slice(start, min(start + size, len(rows_CD))) for start in range(0, len(rows_CD), size))


class ClassWeights(NamedTuple):
    """What a batch is multiplied with: v . w_k + b_k, or with `unit` v . w_k / |w_k|, which knows no bias."""

    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None = None
    normalize: bool = False


class _ClassLogits(NamedTuple):
    """Batch and rows, for use inside an autograd function: no gradient.

    At 74,500 rows of 512 a normalised copy of the rows would be 153 MB, so the norms divide the product instead.
    """

    vector_BD: torch.Tensor
    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None
    inverse_C: torch.Tensor | None

    @classmethod
    def of(cls, vector_BD: torch.Tensor, rows: ClassWeights) -> "_ClassLogits":
        """Measures the rows where only their directions count."""
        norm_C = torch.linalg.vector_norm(rows.weight_CD, dim=1) if rows.normalize else None
        return cls(
            vector_BD,
            rows.weight_CD,
            rows.bias_C,
            None if norm_C is None else norm_C.clamp_min_(MIN_NORM).reciprocal_(),
        )

    def columns(self) -> torch.Tensor:
        """The whole product [B, C]."""
        if self.bias_C is not None:
            return torch.addmm(self.bias_C, self.vector_BD, self.weight_CD.t())
        column_BC = self.vector_BD @ self.weight_CD.t()
        return column_BC if self.inverse_C is None else column_BC.mul_(self.inverse_C)


class _ClassLogitsGrad:
    """The gradients of a product's vectors, rows and biases, from those of its columns."""

    def __init__(self, product: _ClassLogits, wanted: tuple[bool, bool, bool]) -> None:
        self.product = product
        vector, weight, bias = wanted
        self.vector_BD = torch.zeros_like(product.vector_BD) if vector else None
        self.weight_CD = torch.empty_like(product.weight_CD) if weight else None
        self.bias_C = torch.empty_like(product.bias_C) if bias and product.bias_C is not None else None

    def add(self, part: slice, grad_BN: torch.Tensor, column_BN: torch.Tensor | None = None) -> None:
        """Takes a block of the columns' gradient, which is spent; where directions count, beside the columns.

        There dL/dw = (g / |w|)^T v - w * sum_b(g z) / |w|^2, the radial part taken out in place.
        """
        weight_ND = self.product.weight_CD[part]
        inverse_C = self.product.inverse_C
        if self.bias_C is not None:
            torch.sum(grad_BN, dim=0, out=self.bias_C[part])
        if inverse_C is not None:
            radial_N = (grad_BN * column_BN).sum(dim=0).mul_(inverse_C[part].square())
            grad_BN.mul_(inverse_C[part])
        if self.vector_BD is not None:
            self.vector_BD.addmm_(grad_BN, weight_ND)
        if self.weight_CD is not None:
            grad_ND = self.weight_CD[part]
            torch.mm(grad_BN.t(), self.product.vector_BD, out=grad_ND)
            if inverse_C is not None:
                grad_ND.addcmul_(weight_ND, radial_N[:, None], value=-1)

    def all(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Of vectors, rows and biases, each where it was wanted."""
        return self.vector_BD, self.weight_CD, self.bias_C


class _ClassLogitsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector_BD, weight_CD, bias_C, unit: bool) -> torch.Tensor:
        product = _ClassLogits.of(vector_BD, ClassWeights(weight_CD, bias_C, unit))
        column_BC = product.columns()
        ctx.save_for_backward(*product, column_BC)
        return column_BC

    @staticmethod
    def backward(ctx, grad_BC: torch.Tensor):
        *product, column_BC = ctx.saved_tensors
        gradients = _ClassLogitsGrad(_ClassLogits(*product), ctx.needs_input_grad[:3])
        for part in row_blocks(column_BC.t()):
            gradients.add(part, grad_BC[:, part].clone(), column_BC[:, part])
        return *gradients.all(), None


def _class_logits(vector_BD: torch.Tensor, rows: ClassWeights) -> torch.Tensor:
    """The product of every vector with every row, [B, C], with all gradients."""
    return _ClassLogitsFunction.apply(vector_BD, *rows)


_Classes = ClassRange | ClassSample
# Maps the target logits [K] to those of the training loss, with a gradient: an angular margin.
TargetMargin = Callable[[torch.Tensor], torch.Tensor]


class _TargetLogits(NamedTuple):
    """Each image's own class, [B] each: whether and where it is here, its logit, the trained one's slope in it."""

    here_B: torch.Tensor
    local_B: torch.Tensor
    logit_B: torch.Tensor
    slope_B: torch.Tensor

    @classmethod
    def take(
        cls, column_BC: torch.Tensor, label_B: torch.Tensor, classes: _Classes, target_transform: TargetMargin | None
    ) -> "_TargetLogits":
        """Reads the target logits and replaces them by their transform."""
        here_B = classes.contains(label_B)
        own = cls(
            here_B, classes.local_index(label_B), column_BC.new_zeros(len(label_B)), column_BC.new_ones(len(label_B))
        )
        (row_K,) = here_B.nonzero(as_tuple=True)
        place_K = own.local_B[row_K]
        logit_K = column_BC[row_K, place_K]
        own.logit_B[row_K] = logit_K
        if target_transform is not None:
            with torch.enable_grad():
                logit_K.requires_grad_()
                harder_K = target_transform(logit_K)
                (own.slope_B[row_K],) = torch.autograd.grad(harder_K.sum(), logit_K)
            column_BC[row_K, place_K] = harder_K.detach()
        return own

    def within(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Which target columns are in a block, and their position in it, [B, 1] each."""
        inside_B = self.here_B & (self.local_B >= part.start) & (self.local_B < part.stop)
        return inside_B[:, None], (self.local_B - part.start).clamp(0, part.stop - part.start - 1)[:, None]


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the global batch; each rank's gradient is that of its own columns."""

    @staticmethod
    def forward(
        ctx, vector_BD, weight_CD, bias_C, unit: bool, label_B, classes: _Classes, target_transform: TargetMargin | None
    ):
        product = _ClassLogits.of(vector_BD, ClassWeights(weight_CD, bias_C, unit))
        column_BC = product.columns()
        own = _TargetLogits.take(column_BC, label_B, classes, target_transform)
        maximum_B = all_reduce(_row_max(column_BC), dist.ReduceOp.MAX)
        total_B = torch.zeros_like(maximum_B)
        for part in row_blocks(weight_CD):
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
        product, own, (column_BC, maximum_B, total_B) = _ClassLogits(*saved[:4]), _TargetLogits(*saved[4:8]), saved[8:]
        gradients = _ClassLogitsGrad(product, ctx.needs_input_grad[:3])
        scale = (grad / len(total_B)).to(column_BC.dtype)
        for part in row_blocks(product.weight_CD):
            column_BN = column_BC[:, part]
            grad_BN = (column_BN - maximum_B[:, None]).exp_().mul_((scale / total_B)[:, None])
            inside_B1, place_B1 = own.within(part)
            share_B1 = grad_BN.gather(1, place_B1)
            own_B1 = torch.where(inside_B1, own.slope_B[:, None] * (share_B1 - scale), share_B1)
            logit_B1 = torch.where(inside_B1, own.logit_B[:, None], column_BN.gather(1, place_B1))
            grad_BN.scatter_(1, place_B1, own_B1)
            gradients.add(part, grad_BN, column_BN.scatter(1, place_B1, logit_B1))
        return *gradients.all(), *(None,) * 4


class _SoftmaxReadout(torch.autograd.Function):
    """This rank's part of softmax(z) V: its columns with its values."""

    @staticmethod
    def forward(ctx, vector_BD, weight_CD, bias_C, value_CD: torch.Tensor) -> torch.Tensor:
        product = _ClassLogits.of(vector_BD, ClassWeights(weight_CD, bias_C))
        share_BC = product.columns()
        maximum_B1 = all_reduce(_row_max(share_BC), dist.ReduceOp.MAX)[:, None]
        total_B = share_BC.new_zeros(len(share_BC))
        for part in row_blocks(weight_CD):
            total_B += share_BC[:, part].sub_(maximum_B1).exp_().sum(dim=1)
        # The sums divide what is read, not the shares.
        total_B1 = all_reduce(total_B, dist.ReduceOp.SUM)[:, None]
        read_BD = (share_BC @ value_CD).div_(total_B1)
        ctx.save_for_backward(*product, value_CD, share_BC, total_B1, read_BD)
        return read_BD

    @staticmethod
    def backward(ctx, grad_BD: torch.Tensor):
        *product, value_CD, share_BC, total_B1, read_BD = ctx.saved_tensors
        gradients = _ClassLogitsGrad(_ClassLogits(*product), ctx.needs_input_grad[:3])
        # sum_k p_k dL/dp_k is the product of what was read on all ranks with its gradient.
        mean_B1 = all_reduce((grad_BD * read_BD).sum(dim=1), dist.ReduceOp.SUM)[:, None] / total_B1
        scaled_BD = grad_BD / total_B1
        for part in row_blocks(value_CD):
            grad_BN = (scaled_BD @ value_CD[part].t()).sub_(mean_B1).mul_(share_BC[:, part])
            gradients.add(part, grad_BN)
        return *gradients.all(), None


def _cross_entropy(
    vector_BD: torch.Tensor,
    rows: ClassWeights,
    label_B: torch.Tensor,
    classes: _Classes,
    target_transform: TargetMargin | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of the softmax over the columns of all ranks, a scalar, the same on every rank."""
    return _CrossEntropy.apply(vector_BD, *rows, label_B, classes, target_transform)


def softmax_readout(vector_BD: torch.Tensor, rows: ClassWeights, value_CD: torch.Tensor) -> torch.Tensor:
    """This rank's share [B, D] of the values' mean, weighed by the softmax over the columns of all ranks.

    The values get no gradient. Raises ValueError for rows that count by their directions: their gradient would need
    the columns and the shares.
    """
    if rows.normalize:
        raise ValueError("a read-out needs rows as they are, not their directions")
    return _SoftmaxReadout.apply(vector_BD, rows.weight_CD, rows.bias_C, value_CD)


def _row_max(column_BC: torch.Tensor) -> torch.Tensor:
    """Largest value of each row, -inf for a rank without classes."""
    if column_BC.shape[1]:
        return column_BC.amax(dim=1)
    return column_BC.new_full((len(column_BC),), -torch.inf)


class ShardedLogits(ABC):
    """The logits of the global batch for this rank's classes.

    Callers get back values of their own images. Only a few numbers an image travel, but for `full_BC`. One process
    holds one range, of all classes.
    """

    classes: ClassRange | ClassSample
    batch_split: BatchSplit

    @property
    @abstractmethod
    def local_BC(self) -> torch.Tensor:
        """This rank's columns as they are asked for after training, [B, C]."""

    @property
    @abstractmethod
    def full_BC(self) -> torch.Tensor:
        """All classes of the global batch, the same on every rank, for losses that every rank computes alike.

        Each rank's gradient goes on into its own columns. For the thousands of classes of a benchmark: B x C values
        travel, which at a face data set's size is not to be.
        """

    def argmax(self) -> torch.Tensor:
        """The class with the largest logit, [b]; the first one on a tie."""
        column_BC = self.local_BC.detach()
        best_WB = stack_ranks(_row_max(column_BC))
        own_B = column_BC.argmax(dim=1) if len(self.classes) else best_WB.new_zeros(best_WB.shape[1]).long()
        winner_WB = stack_ranks(own_B + self.classes.first)
        return winner_WB.gather(0, best_WB.argmax(dim=0)[None])[0][self.batch_split.local_slice]

    def maximum(self) -> torch.Tensor:
        """The largest logit, [b]; no gradient."""
        return all_reduce(_row_max(self.local_BC.detach()), dist.ReduceOp.MAX)[self.batch_split.local_slice]


@dataclass(frozen=True)
class ClassifierLogits(ShardedLogits):
    """Logits that are products of vectors with one row a class, kept as the product until they are asked for.

    `target_transform` maps the target logits to those of the cross-entropy. Logits of a sample of the classes are for
    that loss alone.
    """

    vector_BD: torch.Tensor
    weights: ClassWeights
    classes: ClassRange | ClassSample
    batch_split: BatchSplit
    target_transform: TargetMargin | None = None

    def __post_init__(self) -> None:
        found = [len(self.vector_BD), len(self.weights.weight_CD)]
        expected = [self.batch_split.total, len(self.classes)]
        if found != expected:
            raise ValueError(f"logits of shape {found}, expected {expected}")

    @cached_property
    def local_BC(self) -> torch.Tensor:
        return _class_logits(self.vector_BD, self.weights)

    @cached_property
    def full_BC(self) -> torch.Tensor:
        ranges = [ClassRange.of_rank(self.classes.total, place, world_size()) for place in range(world_size())]
        return gather_replicated(self.local_BC.t(), BatchSplit(tuple(map(len, ranges)))).t()

    def cross_entropy(self, label_b: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the global batch's softmax over all classes, a scalar, the same on every rank."""
        return _cross_entropy(
            self.vector_BD, self.weights, self.batch_split.gather(label_b), self.classes, self.target_transform
        )

    def softmax_readout(self, value_CD: torch.Tensor) -> torch.Tensor:
        """The mean [b, D] of all classes' values, weighed by the softmax; no gradient into the values.

        Travelling: W * b * D values, and as many back.
        """
        return reduce_scatter_batch(softmax_readout(self.vector_BD, self.weights, value_CD), self.batch_split)


@dataclass(frozen=True)
class ReplicatedLogits(ShardedLogits):
    """Logits that are no product, such as a mean of probabilities: every rank computes all classes' alike."""

    logit_BC: torch.Tensor
    classes: ClassRange
    batch_split: BatchSplit

    @property
    def local_BC(self) -> torch.Tensor:
        return self.logit_BC[:, self.classes.first : self.classes.stop]

    @property
    def full_BC(self) -> torch.Tensor:
        return self.logit_BC


@dataclass(frozen=True)
class GatheredFeatures:
    """Features gathered once for everything that meets them with this rank's classes."""

    local_bD: torch.Tensor
    global_BD: torch.Tensor
    batch_split: BatchSplit

    @classmethod
    def gather(cls, feature_bD: torch.Tensor, batch_split: BatchSplit | None = None) -> "GatheredFeatures":
        """Gathers the ranks' features; `batch_split` where the sizes are known already."""
        batch_split = batch_split or BatchSplit.gather_sizes(len(feature_bD), feature_bD.device)
        return cls(feature_bD, gather_batch(feature_bD, batch_split), batch_split)
