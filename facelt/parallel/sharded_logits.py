"""Logits that live where their classes live, and the reductions over all of them.

b images of this rank, B of all ranks, C classes of this rank's range or, in `whole_BC`, of all.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from facelt.parallel.class_range import ClassRange
from facelt.parallel.class_sample import ClassSample
from facelt.parallel.collectives import Shares, all_reduce, gather_ranks, gather_whole, scatter_sum
from facelt.parallel.ranks import world
from facelt.parallel.row_product import Rows, columns
from facelt.parallel.split_softmax import Harder, cross_entropy, read_out, row_maximum


class ShardedLogits(ABC):
    """The logits of the global batch for this rank's classes.

    Callers get back values of their own images. Only a few numbers an image travel, but for `whole_BC`. One process
    holds one range, of all classes.
    """

    classes: ClassRange | ClassSample
    shares: Shares

    @property
    @abstractmethod
    def column_BC(self) -> torch.Tensor:
        """This rank's columns as they are asked for after training, [B, C]."""

    @property
    @abstractmethod
    def whole_BC(self) -> torch.Tensor:
        """All classes of the global batch, the same on every rank, for losses that every rank computes alike.

        Each rank's gradient goes on into its own columns. For the thousands of classes of a benchmark: B x C values
        travel, which at a face data set's size is not to be.
        """

    def argmax(self) -> torch.Tensor:
        """The class with the largest logit, [b]; the first one on a tie."""
        column_BC = self.column_BC.detach()
        best_WB = gather_ranks(row_maximum(column_BC))
        own_B = column_BC.argmax(dim=1) if len(self.classes) else best_WB.new_zeros(best_WB.shape[1]).long()
        winner_WB = gather_ranks(own_B + self.classes.first)
        return winner_WB.gather(0, best_WB.argmax(dim=0)[None])[0][self.shares.own]

    def maximum(self) -> torch.Tensor:
        """The largest logit, [b]; no gradient."""
        return all_reduce(row_maximum(self.column_BC.detach()), dist.ReduceOp.MAX)[self.shares.own]


@dataclass(frozen=True)
class ProductLogits(ShardedLogits):
    """Logits that are products of vectors with one row a class, kept as the product until they are asked for.

    `harder` maps the own classes' logits to those the cross-entropy trains; logits of a sample of the classes are for
    that loss alone.
    """

    vector_BD: torch.Tensor
    rows: Rows
    classes: ClassRange | ClassSample
    shares: Shares
    harder: Harder | None = None

    def __post_init__(self) -> None:
        found = [len(self.vector_BD), len(self.rows.weight_CD)]
        expected = [self.shares.total, len(self.classes)]
        if found != expected:
            raise ValueError(f"logits of shape {found}, expected {expected}")

    @cached_property
    def column_BC(self) -> torch.Tensor:
        return columns(self.vector_BD, self.rows)

    @cached_property
    def whole_BC(self) -> torch.Tensor:
        ranges = [ClassRange.of(self.classes.total, place, world()) for place in range(world())]
        return gather_whole(self.column_BC.t(), Shares(tuple(map(len, ranges)))).t()

    def cross_entropy(self, label_b: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the global batch's softmax over all classes, a scalar, the same on every rank."""
        return cross_entropy(self.vector_BD, self.rows, self.shares.gather(label_b), self.classes, self.harder)

    def read_out(self, value_CD: torch.Tensor) -> torch.Tensor:
        """The mean [b, D] of all classes' values, weighed by the softmax; no gradient into the values.

        Travelling: W * b * D values, and as many back.
        """
        return scatter_sum(read_out(self.vector_BD, self.rows, value_CD), self.shares)


@dataclass(frozen=True)
class GivenLogits(ShardedLogits):
    """Logits that are no product, such as a mean of probabilities: every rank computes all classes' alike."""

    logit_BC: torch.Tensor
    classes: ClassRange
    shares: Shares

    @property
    def column_BC(self) -> torch.Tensor:
        return self.logit_BC[:, self.classes.first : self.classes.stop]

    @property
    def whole_BC(self) -> torch.Tensor:
        return self.logit_BC
