"""Class-sharded logits: softmax cross-entropy and softmax-weighted means over the classes of all ranks.

A rank holds the logits of the global batch for its own range of classes. One B x C tensor is kept from forward to
backward; gradients of logits exist in blocks of columns only.

b images of this rank, B of all ranks, C classes of this rank's range (of all ranks in `full_BC`), D feature, N classes
of a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, NamedTuple

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
from facelt.distributed.trained_logits import LogitTransform, TrainedLogits

NORM_EPS = 1e-12
# On a CPU a block of a batch of 64 stays in the cache; a GPU needs larger ones to be busy.
BLOCK_COLUMNS = {"cpu": 1 << 12, "cuda": 1 << 16}


def row_blocks(row_CD: torch.Tensor) -> Iterator[slice]:
    """Yields the blocks of consecutive rows in which they are processed."""
    size = BLOCK_COLUMNS.get(row_CD.device.type, 1 << 16)
    return (slice(start, min(start + size, len(row_CD))) for start in range(0, len(row_CD), size))


def in_float32(step: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `forward` or `backward` of an autograd function: no autocast, half-precision tensors become float32.

    float64 stays. torch.amp.custom_fwd and custom_bwd do this for one type of device, fixed at import.
    """

    @wraps(step)
    def run(ctx, *inputs):
        device = next(value.device for value in inputs if isinstance(value, torch.Tensor))
        with torch.autocast(device.type, enabled=False):
            return step(ctx, *map(_as_float32, inputs))

    return run


def _as_float32(value: Any) -> Any:
    """Returns a half-precision tensor as float32, anything else unchanged."""
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


@dataclass(frozen=True)
class GatheredFeatures:
    """Features of this rank's images and of all ranks, gathered once for every product with this rank's classes."""

    local_bD: torch.Tensor
    global_BD: torch.Tensor
    batch_split: BatchSplit

    @classmethod
    def gather(cls, feature_bD: torch.Tensor, batch_split: BatchSplit | None = None) -> "GatheredFeatures":
        """Gathers the features of all ranks, and the sizes unless given; half precision becomes float32."""
        feature_bD = _as_float32(feature_bD)
        batch_split = batch_split or BatchSplit.gather_sizes(len(feature_bD))
        return cls(feature_bD, gather_batch(feature_bD, batch_split), batch_split)


class ClassWeights(NamedTuple):
    """A classifier's weights: logits are v . w_k + b_k or, with `normalize`, v . w_k / |w_k| without a bias."""

    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None = None
    normalize: bool = False


class _Factors(NamedTuple):
    """Vectors and class weights of logits, used inside autograd functions.

    A normalised copy of 74,500 weights of 512 would take 153 MB, so the logits are divided by the norms instead.
    """

    vector_BD: torch.Tensor
    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None
    inverse_norm_C: torch.Tensor | None

    @classmethod
    def of(cls, vector_BD: torch.Tensor, weights: ClassWeights) -> "_Factors":
        inverse_norm_C = None
        if weights.normalize:
            inverse_norm_C = torch.linalg.vector_norm(weights.weight_CD, dim=1).clamp_min_(NORM_EPS).reciprocal_()
        return cls(vector_BD, weights.weight_CD, weights.bias_C, inverse_norm_C)

    def logits(self) -> torch.Tensor:
        """Returns the logits [B, C]."""
        if self.bias_C is not None:
            return torch.addmm(self.bias_C, self.vector_BD, self.weight_CD.t())
        logit_BC = self.vector_BD @ self.weight_CD.t()
        return logit_BC if self.inverse_norm_C is None else logit_BC.mul_(self.inverse_norm_C)


class _FactorGradients:
    """Gradients of vectors, weights and biases, accumulated from blocks of the logits' gradient."""

    def __init__(self, factors: _Factors, needed: tuple[bool, bool, bool]) -> None:
        self.factors = factors
        vector, weight, bias = needed
        self.vector_BD = torch.zeros_like(factors.vector_BD) if vector else None
        self.weight_CD = torch.empty_like(factors.weight_CD) if weight else None
        self.bias_C = torch.empty_like(factors.bias_C) if bias and factors.bias_C is not None else None

    def add(self, block: slice, grad_BN: torch.Tensor, logit_BN: torch.Tensor | None = None) -> None:
        """Adds a block of the logits' gradient, overwriting it; normalised weights need the logits too.

        For these dL/dw = (g / |w|)^T v - w * sum_b(g z) / |w|^2: the radial part is removed in place.
        """
        weight_ND = self.factors.weight_CD[block]
        inverse_norm_C = self.factors.inverse_norm_C
        if self.bias_C is not None:
            torch.sum(grad_BN, dim=0, out=self.bias_C[block])
        if inverse_norm_C is not None:
            radial_N = (grad_BN * logit_BN).sum(dim=0).mul_(inverse_norm_C[block].square())
            grad_BN.mul_(inverse_norm_C[block])
        if self.vector_BD is not None:
            self.vector_BD.addmm_(grad_BN, weight_ND)
        if self.weight_CD is not None:
            grad_ND = self.weight_CD[block]
            torch.mm(grad_BN.t(), self.factors.vector_BD, out=grad_ND)
            if inverse_norm_C is not None:
                grad_ND.addcmul_(weight_ND, radial_N[:, None], value=-1)

    def as_tuple(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Returns the gradients of vectors, weights and biases, None for those not needed."""
        return self.vector_BD, self.weight_CD, self.bias_C


class _Logits(torch.autograd.Function):
    """The logits of this rank's classes."""

    @staticmethod
    @in_float32
    def forward(ctx, vector_BD, weight_CD, bias_C, normalize: bool) -> torch.Tensor:
        factors = _Factors.of(vector_BD, ClassWeights(weight_CD, bias_C, normalize))
        logit_BC = factors.logits()
        ctx.save_for_backward(*factors, logit_BC)
        return logit_BC

    @staticmethod
    @in_float32
    def backward(ctx, grad_BC: torch.Tensor):
        *factors, logit_BC = ctx.saved_tensors
        gradients = _FactorGradients(_Factors(*factors), ctx.needs_input_grad[:3])
        for block in row_blocks(logit_BC.t()):
            gradients.add(block, grad_BC[:, block].clone(), logit_BC[:, block])
        return *gradients.as_tuple(), None


class _CrossEntropy(torch.autograd.Function):
    """Mean softmax cross-entropy of the global batch; each rank computes the gradient of its classes."""

    @staticmethod
    @in_float32
    def forward(ctx, vector_BD, weight_CD, bias_C, normalize: bool, label_B, classes, transform, prior_C):
        factors = _Factors.of(vector_BD, ClassWeights(weight_CD, bias_C, normalize))
        trained = TrainedLogits.of(factors.logits(), label_B, classes, transform, prior_C)
        max_B = trained.value_B.new_full((len(label_B),), -torch.inf)
        for block in row_blocks(weight_CD):
            max_B = torch.maximum(max_B, trained.block(block).amax(dim=1))
        all_reduce(max_B, dist.ReduceOp.MAX)
        exp_sum_B = torch.zeros_like(max_B)
        for block in row_blocks(weight_CD):
            exp_sum_B += (trained.block(block) - max_B[:, None]).exp_().sum(dim=1)
        target_B = (trained.targets() - max_B).masked_fill(~trained.is_local_B, 0)
        exp_sum_B, target_B = all_reduce(torch.stack([exp_sum_B, target_B]), dist.ReduceOp.SUM)
        *tensors, ctx.negatives = trained
        ctx.save_for_backward(max_B, exp_sum_B, *factors, *tensors)
        return (exp_sum_B.log() - target_B).mean()

    @staticmethod
    @in_float32
    def backward(ctx, grad: torch.Tensor):
        max_B, exp_sum_B, *saved = ctx.saved_tensors
        factors, trained = _Factors(*saved[:4]), TrainedLogits(*saved[4:], ctx.negatives)
        gradients = _FactorGradients(factors, ctx.needs_input_grad[:3])
        scale = (grad / len(exp_sum_B)).to(max_B.dtype)
        for block in row_blocks(factors.weight_CD):
            softmax_BN = (trained.block(block) - max_B[:, None]).exp_().mul_((scale / exp_sum_B)[:, None])
            logit_BN, grad_BN = trained.cross_entropy_gradient(block, softmax_BN, scale)
            gradients.add(block, grad_BN, logit_BN)
        return *gradients.as_tuple(), *(None,) * 5


class _SoftmaxReadout(torch.autograd.Function):
    """This rank's part of softmax(z) V, [B, D]: its classes' probabilities with their values."""

    @staticmethod
    @in_float32
    def forward(ctx, vector_BD, weight_CD, bias_C, value_CD: torch.Tensor) -> torch.Tensor:
        factors = _Factors.of(vector_BD, ClassWeights(weight_CD, bias_C))
        exp_BC = factors.logits()
        max_B1 = all_reduce(_row_max(exp_BC), dist.ReduceOp.MAX)[:, None]
        exp_sum_B = exp_BC.new_zeros(len(exp_BC))
        for block in row_blocks(weight_CD):
            exp_sum_B += exp_BC[:, block].sub_(max_B1).exp_().sum(dim=1)
        # The B x D result is divided by the sums, not the B x C exponentials.
        exp_sum_B1 = all_reduce(exp_sum_B, dist.ReduceOp.SUM)[:, None]
        readout_BD = (exp_BC @ value_CD).div_(exp_sum_B1)
        ctx.save_for_backward(*factors, value_CD, exp_BC, exp_sum_B1, readout_BD)
        return readout_BD

    @staticmethod
    @in_float32
    def backward(ctx, grad_BD: torch.Tensor):
        *factors, value_CD, exp_BC, exp_sum_B1, readout_BD = ctx.saved_tensors
        gradients = _FactorGradients(_Factors(*factors), ctx.needs_input_grad[:3])
        # sum_k p_k dL/dp_k is the inner product of the readout of all ranks with its gradient.
        mean_B1 = all_reduce((grad_BD * readout_BD).sum(dim=1), dist.ReduceOp.SUM)[:, None] / exp_sum_B1
        scaled_BD = grad_BD / exp_sum_B1
        for block in row_blocks(value_CD):
            gradients.add(block, (scaled_BD @ value_CD[block].t()).sub_(mean_B1).mul_(exp_BC[:, block]))
        return *gradients.as_tuple(), None


def _row_max(logit_BC: torch.Tensor) -> torch.Tensor:
    """Returns the largest value of each row, -inf on a rank without classes."""
    if logit_BC.shape[1]:
        return logit_BC.amax(dim=1)
    return logit_BC.new_full((len(logit_BC),), -torch.inf)


class ShardedLogits(ABC):
    """Logits of the global batch for this rank's classes.

    Methods return values of this rank's images. Except for `full_BC`, ranks exchange a few numbers per image. One
    process holds one range, of all classes.
    """

    classes: ClassRange | ClassSample
    batch_split: BatchSplit

    @property
    @abstractmethod
    def local_BC(self) -> torch.Tensor:
        """Logits of this rank's classes, without a margin, [B, C]."""

    @property
    @abstractmethod
    def full_BC(self) -> torch.Tensor:
        """Logits of all classes, the same on every rank, for losses that every rank computes in full.

        Each rank's gradient flows into its own classes. Meant for the thousands of classes of a benchmark: B x C values
        are exchanged, too many for a face data set.
        """

    def argmax(self) -> torch.Tensor:
        """Returns the class with the largest logit, [b]; the first one on a tie."""
        local_BC = self.local_BC.detach()
        max_WB = stack_ranks(_row_max(local_BC))
        index_B = local_BC.argmax(dim=1) if len(self.classes) else max_WB.new_zeros(max_WB.shape[1]).long()
        class_WB = stack_ranks(index_B + self.classes.first)
        return class_WB.gather(0, max_WB.argmax(dim=0)[None])[0][self.batch_split.local_slice]

    def maximum(self) -> torch.Tensor:
        """Returns the largest logit, [b]; no gradient."""
        return all_reduce(_row_max(self.local_BC.detach()), dist.ReduceOp.MAX)[self.batch_split.local_slice]


@dataclass(frozen=True)
class ClassifierLogits(ShardedLogits):
    """Logits of vectors and class weights, computed when needed.

    `transform` maps them to those of the cross-entropy. Logits of a sample of the classes are for that loss only.
    """

    vector_BD: torch.Tensor
    weights: ClassWeights
    classes: ClassRange | ClassSample
    batch_split: BatchSplit
    transform: LogitTransform | None = None

    def __post_init__(self) -> None:
        shape = [len(self.vector_BD), len(self.weights.weight_CD)]
        expected = [self.batch_split.total, len(self.classes)]
        if shape != expected:
            raise ValueError(f"logits of shape {shape}, expected {expected}")

    @cached_property
    def local_BC(self) -> torch.Tensor:
        return _Logits.apply(self.vector_BD, *self.weights)

    @cached_property
    def full_BC(self) -> torch.Tensor:
        ranges = [ClassRange.of_rank(self.classes.total, index, world_size()) for index in range(world_size())]
        return gather_replicated(self.local_BC.t(), BatchSplit(tuple(map(len, ranges)))).t()

    def cross_entropy(self, label_b: torch.Tensor, prior_C: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the mean softmax cross-entropy of the global batch, a scalar, the same on every rank.

        A prior, of all classes of this rank's range, is added to the transformed logits, without gradient.
        Raises IndexError for a label outside 0..C-1, as F.cross_entropy (see `ClassRange.check_labels`).
        """
        label_B = self.batch_split.gather(label_b)
        self.classes.check_labels(label_B)
        prior_C = None if prior_C is None else self.classes.select(prior_C)
        return _CrossEntropy.apply(self.vector_BD, *self.weights, label_B, self.classes, self.transform, prior_C)

    def softmax_readout(self, value_CD: torch.Tensor) -> torch.Tensor:
        """Returns the mean of all classes' values weighted by the softmax, [b, D]; no gradient into the values.

        Traffic: W * b * D values forward, the same backward. Raises ValueError for normalised weights: their gradient
        would need the logits besides the probabilities.
        """
        if self.weights.normalize:
            raise ValueError("softmax_readout does not support normalized weights")
        part_BD = _SoftmaxReadout.apply(self.vector_BD, self.weights.weight_CD, self.weights.bias_C, value_CD)
        return reduce_scatter_batch(part_BD, self.batch_split)


@dataclass(frozen=True)
class ReplicatedLogits(ShardedLogits):
    """Logits of all classes that every rank computes itself, such as a mean of probabilities."""

    logit_BC: torch.Tensor
    classes: ClassRange
    batch_split: BatchSplit

    @property
    def local_BC(self) -> torch.Tensor:
        return self.logit_BC[:, self.classes.first : self.classes.stop]

    @property
    def full_BC(self) -> torch.Tensor:
        return self.logit_BC
