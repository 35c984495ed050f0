"""Logits as the training loss takes them: margins on the targets, transformed negatives, and a class prior.

B images of all ranks, C classes of this rank's range, N of a block of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from facelt.distributed.class_shards import ClassRange, ClassSample
from facelt.distributed.comm import all_reduce

NegativeTransform = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class LogitTransform(NamedTuple):
    """Maps logits to those of the training loss, with a gradient: a margin, for example.

    `target(logit_B)` returns the logits of the images to their own classes, element by element; the logits of images
    whose class is on another rank are 0, and the results for them are not used. `negatives(logit_BN, target_B1)`, if
    given, returns those of other classes, element by element; it gets the transformed target logits, into which it
    gives no gradient.
    """

    target: Callable[[torch.Tensor], torch.Tensor]
    negatives: NegativeTransform | None = None


class TrainedLogits(NamedTuple):
    """This rank's logits, with those of the loss computed in blocks of columns.

    `logit_BC` are the logits of the classifier, except that the targets are transformed. For each image, [B]: whether
    this rank has its target, the target's column, its value before and after the transform, and the derivative of the
    transform. With `negatives`, `trained_B` holds the targets of all ranks.
    """

    logit_BC: torch.Tensor
    is_local_B: torch.Tensor
    column_B: torch.Tensor
    value_B: torch.Tensor
    trained_B: torch.Tensor
    slope_B: torch.Tensor
    prior_C: torch.Tensor | None
    negatives: NegativeTransform | None

    @classmethod
    def of(
        cls,
        logit_BC: torch.Tensor,
        label_B: torch.Tensor,
        classes: ClassRange | ClassSample,
        transform: LogitTransform | None,
        prior_C: torch.Tensor | None,
    ) -> "TrainedLogits":
        """Transforms the targets in `logit_BC`, which it takes over."""
        is_local_B, column_B = classes.contains(label_B), classes.local_index(label_B)
        column_B1, value_B = column_B[:, None], logit_BC.new_zeros(len(label_B))
        if logit_BC.shape[1]:
            value_B = logit_BC.gather(1, column_B1)[:, 0].masked_fill_(~is_local_B, 0)
        trained_B, slope_B, negatives = torch.zeros_like(value_B), torch.ones_like(value_B), None
        if transform is not None:
            with torch.enable_grad():
                target_B = value_B.detach().requires_grad_()
                transformed_B = transform.target(target_B)
                (gradient_B,) = torch.autograd.grad(transformed_B.sum(), target_B)
            slope_B = torch.where(is_local_B, gradient_B, slope_B)
            trained_B = torch.where(is_local_B, transformed_B.detach(), trained_B)
            if logit_BC.shape[1]:
                kept_B1 = torch.where(is_local_B[:, None], trained_B[:, None], logit_BC.gather(1, column_B1))
                logit_BC.scatter_(1, column_B1, kept_B1)
            negatives = transform.negatives
            if negatives is not None:
                all_reduce(trained_B, dist.ReduceOp.SUM)
        return cls(logit_BC, is_local_B, column_B, value_B, trained_B, slope_B, prior_C, negatives)

    def block(self, block: slice) -> torch.Tensor:
        """Returns a block of columns, [B, N]; a view if there are neither negatives to transform nor a prior."""
        logit_BN = self.logit_BC[:, block]
        if self.negatives is not None:
            trained_BN = self.negatives(logit_BN, self.trained_B[:, None])
            is_inside_B1, column_B1 = self._targets_in(block)
            own_B1 = torch.where(is_inside_B1, logit_BN.gather(1, column_B1), trained_BN.gather(1, column_B1))
            logit_BN = trained_BN.scatter(1, column_B1, own_B1)
        return logit_BN if self.prior_C is None else logit_BN + self.prior_C[block]

    def targets(self) -> torch.Tensor:
        """Returns the target logits of this rank's classes, [B]; those of others are to be masked by `is_local_B`."""
        if not self.logit_BC.shape[1]:
            return self.value_B
        target_B = self.logit_BC.gather(1, self.column_B[:, None])[:, 0]
        return target_B if self.prior_C is None else target_B + self.prior_C[self.column_B]

    def cross_entropy_gradient(
        self, block: slice, softmax_BN: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a block of the classifier's logits and the gradient of the cross-entropy into them, [B, N] each.

        `softmax_BN` is `scale` times the softmax of this block's logits of the loss; it may be overwritten.
        """
        logit_BN = self.logit_BC[:, block]
        is_inside_B1, column_B1 = self._targets_in(block)
        target_B1 = self.slope_B[:, None] * (softmax_BN.gather(1, column_B1) - scale)
        grad_BN = softmax_BN
        if self.negatives is not None:
            with torch.enable_grad():
                negative_BN = logit_BN.detach().requires_grad_()
                trained_BN = self.negatives(negative_BN, self.trained_B[:, None])
            (grad_BN,) = torch.autograd.grad(trained_BN, negative_BN, softmax_BN)
        grad_BN.scatter_(1, column_B1, torch.where(is_inside_B1, target_B1, grad_BN.gather(1, column_B1)))
        value_B1 = torch.where(is_inside_B1, self.value_B[:, None], logit_BN.gather(1, column_B1))
        return logit_BN.scatter(1, column_B1, value_B1), grad_BN

    def _targets_in(self, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns whether the target is in a block of columns, and its clamped position in it, [B, 1] each."""
        is_inside_B = self.is_local_B & (self.column_B >= block.start) & (self.column_B < block.stop)
        return is_inside_B[:, None], (self.column_B - block.start).clamp(0, block.stop - block.start - 1)[:, None]
