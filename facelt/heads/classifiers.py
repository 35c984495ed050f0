"""What every classifier of the feature is.

The plain linear classifier.

D feature, C identities of this rank's range.

A linear classifier that learns nothing but one factor a class.

C identities of this rank's range.

The cosine classifier, without a normalised copy of its weights.

B batch, D feature, K identities drawn.

Angular margins: the own identity's cosine is made smaller in training, so that the feature has to come closer.

K images whose identity this rank holds.

From features to logits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config.registry import register_head
from facelt.distributed.class_shards import ClassRange, ClassSample, sharded_entries
from facelt.distributed.comm import BatchSplit, sum_grad_over_ranks
from facelt.distributed.logits import MIN_NORM, ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.errors import UserError


class Head(nn.Module, ABC):
    """Logits of a feature; in training a head may make it harder for the own identity."""

    @abstractmethod
    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        """Logits as they are asked for after training."""

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        """Logits of the training loss, for this rank's images with labels [b]; what is drawn is drawn for `step`."""
        return self(feature)


@torch.no_grad()
def take_head(head: nn.Module, state: Mapping[str, torch.Tensor], prefix: str = "head.") -> None:
    """Fills a head from an earlier stage's whole state, of which a rank reads its own classes' rows.

    Raises UserError, with nothing changed, where that stage has no head of the same shape.
    """
    split = sharded_entries(head)
    for name, value in head.state_dict().items():
        given, rows = state.get(prefix + name), split[name].total if name in split else len(value)
        if given is None or tuple(given.shape) != (rows, *value.shape[1:]):
            raise UserError(
                f"start: the earlier stage has no head like this one ({name} is missing or of another shape); "
                "give both stages the same head, or start it anew"
            )
    for name, value in head.state_dict().items():
        classes = split.get(name)
        value.copy_(state[prefix + name][slice(None) if classes is None else slice(classes.first, classes.stop)])


@register_head("linear")
class LinearHead(Head):
    """z = W f + b, initialised as torch's Linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = ClassRange.local(num_classes)
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        return ClassifierLogits(
            feature.global_BD, ClassWeights(self.weight, self.bias), self.classes, feature.batch_split
        )


class ScaledHead(Head):
    """z_c = s_c (w_c f + b_c): w and b stand still, s begins at 1.

    Source: learnable weight scaling, Kang et al., Decoupling Representation and Classifier, ICLR 2020.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = LinearHead(dim, num_classes).requires_grad_(False)
        self.classes = self.linear.classes
        self.scale_C = nn.Parameter(torch.ones(len(self.classes)))

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        rows = ClassWeights(self.scale_C[:, None] * self.linear.weight, self.scale_C * self.linear.bias)
        return ClassifierLogits(feature.global_BD, rows, self.classes, feature.batch_split)


class LearnedScale(nn.Module):
    """One number that every rank holds and learns alike."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([first]))

    def forward(self) -> torch.Tensor:
        return sum_grad_over_ranks(self.value)


@register_head("cosine")
class CosineHead(Head):
    """z = scale * cos(f, w), scale 16 as OLTR's released code has it; with `learn_scale` that is where it begins.

    With a `sample_rate` below 1 the training loss is Partial FC's (An et al., CVPR 2022): each rank takes the batch's
    own identities and a share of its others, and only their rows get a gradient, which is a sparse one.
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
        self.learned_scale = LearnedScale(scale) if learn_scale else None
        self.sample_rate = sample_rate
        self.weight = nn.Parameter(self.classes.uniform_rows(dim, dim**-0.5))

    def scaled_logits(self, vector_BD: torch.Tensor, batch_split: BatchSplit) -> ClassifierLogits:
        """z = scale * v . w / |w|: the vectors of all images with their length, the rows without theirs."""
        scale = self.scale if self.learned_scale is None else self.learned_scale()
        return ClassifierLogits(scale * vector_BD, ClassWeights(self.weight, normalize=True), self.classes, batch_split)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        return self.scaled_logits(F.normalize(feature.global_BD, dim=1, eps=MIN_NORM), feature.batch_split)

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        logits = self(feature)
        if self.sample_rate == 1:
            return logits
        sample = ClassSample.draw(self.classes, feature.batch_split.gather(label_b), self.sample_rate, step)
        drawn_KD = F.embedding(sample.position_K, self.weight, sparse=True)
        return replace(logits, weights=ClassWeights(drawn_KD, normalize=True), classes=sample)


# acos has no slope at 1 and -1.
COSINE_LIMIT = 1 - 1e-6


@dataclass(frozen=True)
class Margin:
    """cos(angular * theta + additive) - cosine, the combined margin of ArcFace (CVPR 2019, equation 4).

    (1, 0.5, 0) is ArcFace, (1, 0, 0.4) CosFace. Where the widened angle exceeds pi its cosine would rise again and
    reward a worse feature. There cos(theta) less a constant takes its place: additive * sin(additive), as ArcFace's
    authors have it, or what keeps the curve falling where `angular` bends it, whichever is more.
    """

    angular: float = 1.0
    additive: float = 0.0
    cosine: float = 0.0

    def __call__(self, cosine_K: torch.Tensor) -> torch.Tensor:
        """Target cosines [K] with the margin taken off."""
        if self.angular == 1 and self.additive == 0:
            return cosine_K - self.cosine
        theta_K = cosine_K.clamp(-COSINE_LIMIT, COSINE_LIMIT).acos()
        widened_K = self.angular * theta_K + self.additive
        straight_angle = (math.pi - self.additive) / self.angular
        penalty = max(self.additive * math.sin(self.additive), 1 + math.cos(straight_angle))
        return torch.where(widened_K <= math.pi, widened_K.cos(), cosine_K - penalty) - self.cosine


ARCFACE = Margin(additive=0.5)


@register_head("margin")
class MarginHead(CosineHead):
    """A cosine classifier that trains with a margin and answers without one."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        scale: float = 64.0,
        margin: Margin = ARCFACE,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(dim, num_classes, scale, sample_rate)
        self.margin = margin

    def training_logits(self, feature: GatheredFeatures, label_b: torch.Tensor, step: int = 0) -> ClassifierLogits:
        """Logits whose loss has the margin taken off each image's own identity, on the rank that holds it."""
        return replace(super().training_logits(feature, label_b, step), target_transform=self._target_transform)

    def _target_transform(self, logit_K: torch.Tensor) -> torch.Tensor:
        return self.scale * self.margin(logit_K / self.scale)
