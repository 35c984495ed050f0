"""Fusion of a linear classifier and the nearest class mean: rules, learned weights, a selector, knowledge transfer.

B images of all ranks, D feature, C classes, H hidden, K largest linear logits.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings, SecondStageSettings
from facelt.distributed.logits import NORM_EPS, GatheredFeatures, ReplicatedLogits
from facelt.heads.classifiers import LinearHead, load_head
from facelt.heads.ncm import NcmHead
from facelt.losses.experts import distillation_kl
from facelt.methods.base import (
    FrozenBackboneMethod,
    Method,
    PostHocMethod,
    SamplerSpec,
    StepContext,
    StepOutput,
    TrainBatch,
)
from facelt.models.network import Network


class LogitPair(NamedTuple):
    """Logits of both classifiers for the global batch, equal on all ranks."""

    linear_BC: torch.Tensor
    ncm_BC: torch.Tensor


class LinearAndNcmSettings(SecondStageSettings):
    """`scaled` maps the cosines to the class means to the range of the linear logits, image by image."""

    scaled: bool = True


class _NcmMethod(Method):
    """Base class of methods with class means from a pass over the training set."""

    ncm: NcmHead

    def observe(self, batch: TrainBatch) -> None:
        self.ncm.accumulate(self.gathered_features(batch.image_B3HW), batch.label_B)

    def end_dataset_pass(self) -> None:
        self.ncm.finish()


class LinearAndNcm(_NcmMethod, FrozenBackboneMethod):
    """Base class: the earlier stage's linear head, and the cosines to class means from a pass over the training set."""

    def __init__(self, network: Network, num_classes: int, scaled: bool) -> None:
        super().__init__(network)
        self.scaled = scaled
        self.linear = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.ncm = NcmHead(network.dim, num_classes)

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the linear head. Raises UserError if the earlier stage has none."""
        load_head(self.linear, state)

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.ncm.memory.is_filled

    def linear_logits(self, feature: GatheredFeatures) -> torch.Tensor:
        """Returns the logits of the linear head, [B, C]."""
        return self.linear(feature).full_BC

    def logit_pair(self, feature: GatheredFeatures) -> LogitPair:
        """Returns the logits of both classifiers."""
        linear_BC, ncm_BC = self.linear_logits(feature), self.ncm(feature).full_BC
        return LogitPair(linear_BC, match_range(linear_BC, ncm_BC) if self.scaled else ncm_BC)

    def replicated_logits(self, logit_BC: torch.Tensor, feature: GatheredFeatures) -> ReplicatedLogits:
        """Returns fused logits [B, C], which every rank has computed."""
        return ReplicatedLogits(logit_BC, self.linear.classes, feature.batch_split)


def match_range(target_BC: torch.Tensor, value_BC: torch.Tensor) -> torch.Tensor:
    """Returns the values mapped linearly, image by image, to the minimum and maximum of the target."""
    low_B1, high_B1 = value_BC.amin(dim=1, keepdim=True), value_BC.amax(dim=1, keepdim=True)
    target_low_B1, target_high_B1 = target_BC.amin(dim=1, keepdim=True), target_BC.amax(dim=1, keepdim=True)
    relative_BC = (value_BC - low_B1) / (high_B1 - low_B1).clamp_min(torch.finfo(value_BC.dtype).tiny)
    return target_low_B1 + relative_BC * (target_high_B1 - target_low_B1)


def masked_mean(loss_B: torch.Tensor, mask_B: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the masked losses, a scalar; 0 if none are masked."""
    return (loss_B * mask_B).sum() / mask_B.sum().clamp_min(1)


# Each returns [B, C] from both logits and the weight of the linear ones, which only w_mix uses.
_RULES: dict[str, Callable[[LogitPair, torch.Tensor], torch.Tensor]] = {
    "sum": lambda pair, weight: pair.linear_BC + pair.ncm_BC,
    "softmax_sum": lambda pair, weight: pair.linear_BC.softmax(dim=1) + pair.ncm_BC.softmax(dim=1),
    "max": lambda pair, weight: torch.maximum(pair.linear_BC, pair.ncm_BC),
    "w_mix": lambda pair, weight: torch.lerp(pair.ncm_BC, pair.linear_BC, weight),
}
_WEIGHTS = tuple(step / 10 for step in range(11))


class FusionSettings(LinearAndNcmSettings):
    """Fusion by the `rule`: sum of logits, sum of probabilities (softmax_sum), larger logit (max) or mean (w_mix).

    `weight` of the linear classifier in w_mix is tuned over 0, 0.1, ... 1 if there are validation images.
    """

    post_hoc: ClassVar[bool] = True
    rule: Literal["sum", "softmax_sum", "max", "w_mix"] = "sum"
    weight: float = Field(0.5, ge=0, le=1)


@register_method("fusion", FusionSettings)
class Fusion(PostHocMethod, LinearAndNcm):
    """Fusion by a fixed rule: sum, sum of probabilities, elementwise maximum, or a weighted mean."""

    weight: torch.Tensor

    def __init__(
        self, config: FusionSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.rule = config.rule
        self.register_buffer("weight", torch.tensor(config.weight))

    @property
    def tunable_values(self) -> Sequence[float]:
        return _WEIGHTS if self.rule == "w_mix" else ()

    def set_value(self, value: float) -> None:
        self.weight.fill_(value)

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = self.gathered_features(image_B3HW)
        return self.replicated_logits(_RULES[self.rule](self.logit_pair(feature), self.weight), feature)


@register_method("fusion_llw", LinearAndNcmSettings)
class FusionLlw(LinearAndNcm):
    """Learned logit weights: z = (w1 z_linear + b1) + (w2 z_ncm + b2), with one value per class, initially N(0, 1).

    It trains on class-aware batches. The parameters are replicated; every rank computes the loss of the global batch.
    """

    def __init__(
        self, config: LinearAndNcmSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.weight_2C = nn.Parameter(torch.randn(2, num_classes))
        self.offset_2C = nn.Parameter(torch.randn(2, num_classes))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        return StepOutput(F.cross_entropy(self._mixed(feature), feature.batch_split.gather(batch.label_B)))

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = self.gathered_features(image_B3HW)
        return self.replicated_logits(self._mixed(feature), feature)

    def _mixed(self, feature: GatheredFeatures) -> torch.Tensor:
        both_2BC = torch.stack(self.logit_pair(feature))
        return (self.weight_2C[:, None] * both_2BC + self.offset_2C[:, None]).sum(dim=0)


_SLOPE = 0.1


class ClassifierSelector(nn.Module):
    """One score per image from its unit feature and its largest linear logits in descending order."""

    def __init__(self, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.look = nn.Linear(dim, hidden)
        self.decide = nn.Linear(hidden + top, 1)

    def forward(self, feature_BD: torch.Tensor, linear_BC: torch.Tensor) -> torch.Tensor:
        """Returns scores [B], trained to be positive if the linear classifier is wrong and the nearest mean correct."""
        seen_BH = F.leaky_relu(self.look(F.normalize(feature_BD, dim=1, eps=NORM_EPS)), _SLOPE)
        top_BK = linear_BC.topk(self.top, dim=1).values
        return self.decide(torch.cat([seen_BH, top_BK], dim=1)).squeeze(1)


class FusionAsmSettings(LinearAndNcmSettings):
    """The selector reads the `top` largest linear logits and `hidden` units computed from the feature.

    With `feature_length` the linear logits are those of the feature scaled to this length. With `balance` positive and
    negative images have half the weight each in the loss, without it all images have the same.
    """

    top: int = Field(100, ge=1)
    hidden: int = Field(50, ge=1)
    feature_length: float | None = Field(None, gt=0)
    balance: bool = True


@register_method("fusion_asm", FusionAsmSettings)
class FusionAsm(LinearAndNcm):
    """Adaptive selection: the nearest class mean predicts if the selector's sigmoid exceeds 0.5, else the linear head.

    It trains by binary cross-entropy. The released code draws as many positive images as negative ones; with `balance`
    they have half the weight each instead.
    The selector is replicated; every rank computes the loss of the global batch.
    """

    hits_3: torch.Tensor

    def __init__(
        self, config: FusionAsmSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.feature_length, self.balance = config.feature_length, config.balance
        self.selector = ClassifierSelector(network.dim, config.hidden, min(config.top, num_classes))
        # True positives, false positives and false negatives of the epoch; saved, so that a resumed epoch adds to them.
        self.register_buffer("hits_3", torch.zeros(3, dtype=torch.int64))

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def linear_logits(self, feature: GatheredFeatures) -> torch.Tensor:
        if self.feature_length is None:
            return super().linear_logits(feature)
        local_bD, global_BD = (
            self.feature_length * F.normalize(value_BD, dim=1, eps=NORM_EPS)
            for value_BD in (feature.local_bD, feature.global_BD)
        )
        return super().linear_logits(GatheredFeatures(local_bD, global_BD, feature.batch_split))

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        if not context.step:
            self.hits_3.zero_()

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        pair, label_B = self.logit_pair(feature), feature.batch_split.gather(batch.label_B)
        positive_B = (pair.linear_BC.argmax(dim=1) != label_B) & (pair.ncm_BC.argmax(dim=1) == label_B)
        score_B = self.selector(feature.global_BD, pair.linear_BC)
        selected_B = score_B.detach() > 0
        outcome_3B = torch.stack([selected_B & positive_B, selected_B & ~positive_B, ~selected_B & positive_B])
        loss = selector_loss(score_B, positive_B, balance=self.balance)
        return StepOutput(loss, after=lambda is_finite: self.hits_3.add_((outcome_3B & is_finite).sum(dim=1)))

    def diagnostics(self) -> Mapping[str, float]:
        """Returns the F1 score of the selector on the training images of the epoch."""
        true_positive, false_positive, false_negative = self.hits_3.tolist()
        errors = false_positive + false_negative
        return {"selector_f1": 2 * true_positive / max(2 * true_positive + errors, 1)}

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = self.gathered_features(image_B3HW)
        pair = self.logit_pair(feature)
        selected_B1 = self.selector(feature.global_BD, pair.linear_BC)[:, None] > 0
        return self.replicated_logits(torch.where(selected_B1, pair.ncm_BC, pair.linear_BC), feature)


def selector_loss(score_B: torch.Tensor, positive_B: torch.Tensor, *, balance: bool = True) -> torch.Tensor:
    """Returns half the mean cross-entropy of positive images plus half that of the others, or the mean of all."""
    term_B = F.binary_cross_entropy_with_logits(score_B, positive_B.to(score_B.dtype), reduction="none")
    if not balance:
        return term_B.mean()
    return (masked_mean(term_B, positive_B) + masked_mean(term_B, ~positive_B)) / 2


class FusionKtSettings(MethodSettings):
    """`transfer` is the fraction of the distillation term in the loss; `scaled` is as in the other fusion methods.

    The class means are computed after the fraction `memory_start` of the epochs, and then updated at `rate`: each mean
    moves by `rate` times the sum of the differences of its n features in the batch, divided by n with
    `memory_step: mean`, as in the released code, or by 1 + n (`damped`).
    """

    scaled: bool = True
    transfer: float = Field(0.8, ge=0, le=1)
    memory_start: float = Field(0.01, ge=0, lt=1)
    rate: float = Field(0.1, gt=0, le=1)
    memory_step: Literal["damped", "mean"] = "damped"


@register_method("fusion_kt", FusionKtSettings)
class FusionKt(_NcmMethod):
    """Knowledge transfer from the nearest class mean to a second linear head, while the network trains.

    The network and the first head train by cross-entropy. The second head makes the predictions and is trained on
    detached features: by (1 - transfer) cross-entropy + transfer * KL(nearest mean || second head) on images that the
    nearest mean classifies correctly, by cross-entropy on the others and before the means exist. The means over both
    groups of images are added, as in the released code.
    """

    def __init__(
        self, config: FusionKtSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.config = config
        self.first = LinearHead(network.dim, num_classes)
        self.head = LinearHead(network.dim, num_classes)
        mean_step = config.memory_step == "mean"
        self.ncm = NcmHead(network.dim, num_classes, rate=config.rate, mean_step=mean_step)
        self._uses_memory = False

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        self._uses_memory = context.epoch_fraction >= self.config.memory_start

    @property
    def needs_dataset_pass(self) -> bool:
        return self._uses_memory and not self.ncm.memory.is_filled

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        detached = GatheredFeatures(feature.local_bD.detach(), feature.global_BD.detach(), feature.batch_split)
        first = self.first(feature)
        cross_entropy = first.cross_entropy(batch.label_B)
        label_B = feature.batch_split.gather(batch.label_B)
        if self._uses_memory:
            transfer_loss = self._transfer_loss(self.head(detached).full_BC, first.full_BC.detach(), detached, label_B)
        else:
            transfer_loss = self.head(detached).cross_entropy(batch.label_B)
        return StepOutput(
            cross_entropy + transfer_loss,
            {"cross_entropy": cross_entropy.detach(), "transfer_loss": transfer_loss.detach()},
            after=partial(self._update_means, detached, batch.label_B),
        )

    def _update_means(self, detached: GatheredFeatures, label_b: torch.Tensor, is_finite: torch.Tensor) -> None:
        if self._uses_memory:
            self.ncm.update(detached, label_b, is_finite)

    def _transfer_loss(
        self, second_BC: torch.Tensor, first_BC: torch.Tensor, detached: GatheredFeatures, label_B: torch.Tensor
    ) -> torch.Tensor:
        """Returns the loss of the second head, a scalar, equal on all ranks."""
        ncm_BC = self.ncm(detached).full_BC
        if self.config.scaled:
            ncm_BC = match_range(first_BC, ncm_BC)
        is_correct_B = ncm_BC.argmax(dim=1) == label_B
        cross_entropy_B = F.cross_entropy(second_BC, label_B, reduction="none")
        transfer = self.config.transfer
        distilled_B = (1 - transfer) * cross_entropy_B + transfer * distillation_kl(second_BC, ncm_BC)
        return masked_mean(distilled_B, is_correct_B) + masked_mean(cross_entropy_B, ~is_correct_B)
