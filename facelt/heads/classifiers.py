"""Linear, cosine and margin classifiers, sharded by class.

b images of this rank, B of all ranks, D feature, C classes of this rank's range, N of a block of them, K sampled
classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from facelt.config.registry import register_head
from facelt.distributed.class_shards import ClassRange, ClassSample, sharded_entries
from facelt.distributed.comm import BatchSplit, all_reduce, sum_grad_over_ranks
from facelt.distributed.logits import NORM_EPS, ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.distributed.trained_logits import LogitTransform
from facelt.errors import UserError
from facelt.heads.margins import Margin, arcface


class Head(nn.Module, ABC):
    """A classifier of features."""

    @abstractmethod
    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        """Returns logits for evaluation."""

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        """Returns logits for the training loss: with a margin or of a sample of the classes, if the head has one.

        The labels are those of this rank's images; the sample is drawn for `step`.
        """
        return self(feature)

    def after_step(self, feature: GatheredFeatures, is_finite: torch.Tensor) -> None:
        """Updates running statistics after an optimiser step on these features, if the head has any and the step is
        finite.
        """


@torch.no_grad()
def load_head(head: nn.Module, state: Mapping[str, torch.Tensor], prefix: str = "head.") -> None:
    """Copies a head from the full state of an earlier stage; each rank takes the rows of its classes.

    Raises UserError, with nothing changed, if that stage has no head of the same shape.
    """
    ranges = sharded_entries(head)
    for name, value in head.state_dict().items():
        stored, rows = state.get(prefix + name), ranges[name].total if name in ranges else len(value)
        if stored is None or tuple(stored.shape) != (rows, *value.shape[1:]):
            raise UserError(
                f"init_from: the earlier stage has no head like this one ({name} is missing or of another shape); "
                "configure the same head for both stages, or start with a new head"
            )
    for name, value in head.state_dict().items():
        classes = ranges.get(name)
        value.copy_(state[prefix + name][slice(None) if classes is None else slice(classes.first, classes.stop)])


@register_head("linear")
class LinearHead(Head):
    """z = W f + b, initialised like torch.nn.Linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = ClassRange.local(num_classes)
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        weights = ClassWeights(self.weight, self.bias)
        return ClassifierLogits(feature.global_BD, weights, self.classes, feature.batch_split)


class WeightScalingHead(Head):
    """z_c = s_c (w_c f + b_c) with frozen w and b, and s initially 1.

    Source: learnable weight scaling, Kang et al., Decoupling Representation and Classifier, ICLR 2020.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = LinearHead(dim, num_classes).requires_grad_(False)
        self.classes = self.linear.classes
        self.scale_C = nn.Parameter(torch.ones(len(self.classes)))

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        weights = ClassWeights(self.scale_C[:, None] * self.linear.weight, self.scale_C * self.linear.bias)
        return ClassifierLogits(feature.global_BD, weights, self.classes, feature.batch_split)


class _LearnedScale(nn.Module):
    """A learned number, replicated on every rank."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([initial]))

    def forward(self) -> torch.Tensor:
        return sum_grad_over_ranks(self.value)


@register_head("cosine")
class CosineHead(Head):
    """z = scale * cos(f, w), by default with OLTR's scale of 16; `learn_scale` makes the scale a parameter.

    With a `sample_rate` below 1 the training loss is that of Partial FC (An et al., CVPR 2022): each rank takes the
    batch's classes and a sample of its other ones, and only their weights get a gradient, a sparse one.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        scale: float = 16.0,
        sample_rate: float = 1.0,
        *,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.classes = ClassRange.local(num_classes)
        self.scale = scale
        self.learned_scale = _LearnedScale(scale) if learn_scale else None
        self.sample_rate = sample_rate
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))

    @torch.no_grad()
    def imprint(self, mean_CD: torch.Tensor, filled_C: torch.Tensor) -> int:
        """Turns the rows of the classes in the mask to their means; returns the number of other rows, of all ranks.

        Each row keeps its length, on which the size of its gradient depends. Source: imprinted weights, Qi, Brown and
        Lowe, Low-Shot Learning with Imprinted Weights, CVPR 2018.
        """
        length_C1 = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
        imprinted_CD = (length_C1 * F.normalize(mean_CD, dim=1, eps=NORM_EPS)).to(self.weight.dtype)
        self.weight.copy_(torch.where(filled_C[:, None], imprinted_CD, self.weight))
        return int(all_reduce((~filled_C).sum(), dist.ReduceOp.SUM))

    def scaled_logits(self, vector_BD: torch.Tensor, batch_split: BatchSplit) -> ClassifierLogits:
        """Returns z = scale * v . w / |w| for vectors of all ranks, which are not normalised."""
        scale = self.scale if self.learned_scale is None else self.learned_scale()
        return ClassifierLogits(scale * vector_BD, ClassWeights(self.weight, normalize=True), self.classes, batch_split)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        return self.scaled_logits(F.normalize(feature.global_BD, dim=1, eps=NORM_EPS), feature.batch_split)

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        logits = self(feature)
        if self.sample_rate == 1:
            return logits
        sample = ClassSample.draw(self.classes, feature.batch_split.gather(label_b), self.sample_rate, step)
        weight_KD = F.embedding(sample.position_K, self.weight, sparse=True)
        return replace(logits, weights=ClassWeights(weight_KD, normalize=True), classes=sample)


@register_head("margin")
class MarginHead(CosineHead):
    """A cosine classifier with a margin in training only, by default ArcFace's; by default with the margin's scale."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        scale: float | None = None,
        margin: Margin | None = None,
        sample_rate: float = 1.0,
    ) -> None:
        margin = arcface() if margin is None else margin
        super().__init__(dim, num_classes, margin.scale if scale is None else scale, sample_rate)
        self.margin = margin

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        quality_B = self.margin.quality(_norms(feature))

        def target(logit_B: torch.Tensor) -> torch.Tensor:
            return self.scale * self.margin(logit_B / self.scale, quality_B)

        def negatives(logit_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
            return self.scale * self.margin.negatives(logit_BN / self.scale, target_B1 / self.scale)

        transform = LogitTransform(target, negatives if self.margin.changes_negatives else None)
        return replace(super().training_logits(feature, label_b, step), transform=transform)

    def after_step(self, feature: GatheredFeatures, is_finite: torch.Tensor) -> None:
        self.margin.update(_norms(feature), is_finite)


def _norms(feature: GatheredFeatures) -> torch.Tensor:
    """Returns the norms of the features of all ranks, [B]; no gradient."""
    return torch.linalg.vector_norm(feature.global_BD.detach(), dim=1)
