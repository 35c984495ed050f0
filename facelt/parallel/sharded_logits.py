"""Logits that live where their classes live, and the reductions over all of them.

b images of this rank, B of all ranks, C classes of this rank's range, D feature.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from facelt.parallel.class_range import ClassRange
from facelt.parallel.class_sample import ClassSample
from facelt.parallel.collectives import Shares, all_reduce, gather_ranks, scatter_sum
from facelt.parallel.row_product import Rows, columns
from facelt.parallel.split_softmax import Harder, cross_entropy, read_out, row_maximum


@dataclass(frozen=True)
class ShardedLogits:
    """The logits of the global batch for this rank's classes, kept as the product they are until they are asked for.

    Callers hand in and get back values of their own images. Only a few numbers an image travel, never a B x C matrix.
    One process holds one range, of all classes. `harder` maps the own classes' logits to those the loss trains;
    logits of a sample of the classes are for that loss alone.
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
        """This rank's columns as they are asked for after training, [B, C]."""
        return columns(self.vector_BD, self.rows)

    def cross_entropy(self, label_b: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the global batch's softmax over all classes, a scalar, the same on every rank."""
        return cross_entropy(self.vector_BD, self.rows, self.shares.gather(label_b), self.classes, self.harder)

    def read_out(self, value_CD: torch.Tensor) -> torch.Tensor:
        """The mean [b, D] of all classes' values, weighed by the softmax; no gradient into the values.

        Travelling: W * b * D values, and as many back.
        """
        return scatter_sum(read_out(self.vector_BD, self.rows, value_CD), self.shares)

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
