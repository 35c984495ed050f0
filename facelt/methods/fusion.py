"""A linear classifier and the nearest class mean side by side, on the features of a trained network.

B images of all ranks, C classes.

A linear classifier and the nearest class mean, put together by a rule that learns nothing.

B images of all ranks, C classes.

Learned logit weights: two classifiers put together class by class.

B images of all ranks, C classes.

A selector of the classifier: which of two to ask is learned from where the linear one fails.

B images of all ranks, D feature, C classes, H hidden, K largest linear logits.

Knowledge transfer from the nearest class mean to a second linear classifier, while the network trains.

B images of all ranks, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings, SecondStageSettings
from facelt.distributed.logits import NORM_EPS, ClassifierLogits, GatheredFeatures, ReplicatedLogits
from facelt.heads.classifiers import LinearHead, load_head
from facelt.heads.ncm import NcmHead
from facelt.losses.experts import distillation_kl
from facelt.methods.base import FrozenBackboneMethod, Method, PostHoc, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network


class LogitPair(NamedTuple):
    """What both classifiers say of the global batch, on every rank alike."""

    linear_BC: torch.Tensor
    ncm_BC: torch.Tensor


class _TwoClassifiersSettings(SecondStageSettings):
    """With `scaled` the cosines to the class means are mapped, image by image, to the range of the linear logits."""

    scaled: bool = True


class LinearAndNcm(FrozenBackboneMethod):
    """The earlier stage's linear head and the cosines to the means of unit features, taken in a pass."""

    def __init__(self, network: Network, num_classes: int, scaled: bool) -> None:
        super().__init__(network)
        self.scaled = scaled
        self.linear = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.ncm = NcmHead(network.dim, num_classes)

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        load_head(self.linear, state)

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.ncm.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        self.ncm.accumulate(GatheredFeatures.gather(self.features(batch.image_B3HW)), batch.label_B)

    def end_dataset_pass(self) -> None:
        self.ncm.finish()

    def logit_pair(self, feature: GatheredFeatures) -> LogitPair:
        """Both classifiers' logits."""
        linear_BC, ncm_BC = self.linear(feature).full_BC, self.ncm(feature).full_BC
        return LogitPair(linear_BC, to_range_of(linear_BC, ncm_BC) if self.scaled else ncm_BC)

    def given(self, logit_BC: torch.Tensor, feature: GatheredFeatures) -> ReplicatedLogits:
        """Logits made of both."""
        return ReplicatedLogits(logit_BC, self.linear.classes, feature.batch_split)


def to_range_of(goal_BC: torch.Tensor, value_BC: torch.Tensor) -> torch.Tensor:
    """The values mapped, image by image, such that their minimum and maximum are the goal's."""
    low_B1, high_B1 = value_BC.amin(dim=1, keepdim=True), value_BC.amax(dim=1, keepdim=True)
    goal_low_B1, goal_high_B1 = goal_BC.amin(dim=1, keepdim=True), goal_BC.amax(dim=1, keepdim=True)
    share_BC = (value_BC - low_B1) / (high_B1 - low_B1).clamp_min(torch.finfo(value_BC.dtype).tiny)
    return goal_low_B1 + share_BC * (goal_high_B1 - goal_low_B1)


def mean_where(term_B: torch.Tensor, kind_B: torch.Tensor) -> torch.Tensor:
    """The mean of the terms of one kind of images, a scalar; 0 where there are none."""
    return (term_B * kind_B).sum() / kind_B.sum().clamp_min(1)


Rule = Callable[[LogitPair, torch.Tensor], torch.Tensor]

# Each makes [B, C] of both answers and the linear one's weight, which only w_mix reads.
RULES: dict[str, Rule] = {
    "sum": lambda both, weight: both.linear_BC + both.ncm_BC,
    "softmax_sum": lambda both, weight: both.linear_BC.softmax(dim=1) + both.ncm_BC.softmax(dim=1),
    "max": lambda both, weight: torch.maximum(both.linear_BC, both.ncm_BC),
    "w_mix": lambda both, weight: torch.lerp(both.ncm_BC, both.linear_BC, weight),
}
GRID = tuple(step / 10 for step in range(11))


class FusionSettings(_TwoClassifiersSettings):
    """A linear classifier and the nearest class mean, put together by a rule.

    `weight` is the linear classifier's part in w_mix; where there are validation images it is chosen on them, of
    0, 0.1, ... 1.
    """

    post_hoc: ClassVar[bool] = True
    rule: Literal["sum", "softmax_sum", "max", "w_mix"] = "sum"
    weight: float = Field(0.5, ge=0, le=1)


@register_method("fusion", FusionSettings)
class Fusion(PostHoc, LinearAndNcm):
    """The rules sum, sum of softmax, elementwise maximum, and a mixture whose weight is a setting."""

    weight: torch.Tensor

    def __init__(
        self, config: FusionSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.rule = config.rule
        self.register_buffer("weight", torch.tensor(config.weight))

    @property
    def tunable_values(self) -> Sequence[float]:
        return GRID if self.rule == "w_mix" else ()

    def set_value(self, value: float) -> None:
        self.weight.fill_(value)

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        return self.given(RULES[self.rule](self.logit_pair(feature), self.weight), feature)


class FusionLlwSettings(_TwoClassifiersSettings):
    """Both classifiers' logits with a learned weight and offset a class, on class-aware batches."""


@register_method("fusion_llw", FusionLlwSettings)
class FusionLlw(LinearAndNcm):
    """z = (w1 z_linear + b1) + (w2 z_ncm + b2), a number a class in each of the four, first drawn from N(0, 1).

    Every rank holds them whole and computes the same loss of the whole batch.
    """

    def __init__(
        self, config: FusionLlwSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.weight_2C = nn.Parameter(torch.randn(2, num_classes))
        self.offset_2C = nn.Parameter(torch.randn(2, num_classes))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        return StepOutput(F.cross_entropy(self._mixed(feature), feature.batch_split.gather(batch.label_B)))

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        return self.given(self._mixed(feature), feature)

    def _mixed(self, feature: GatheredFeatures) -> torch.Tensor:
        both_2BC = torch.stack(self.logit_pair(feature))
        return (self.weight_2C[:, None] * both_2BC + self.offset_2C[:, None]).sum(dim=0)


SLOPE = 0.1


class Selector(nn.Module):
    """One number an image, from the feature's direction and the largest linear logits in descending order."""

    def __init__(self, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.look = nn.Linear(dim, hidden)
        self.decide = nn.Linear(hidden + top, 1)

    def forward(self, feature_BD: torch.Tensor, linear_BC: torch.Tensor) -> torch.Tensor:
        """Above 0 where the linear classifier is wrong and the nearest mean right, [B]."""
        seen_BH = F.leaky_relu(self.look(F.normalize(feature_BD, dim=1, eps=NORM_EPS)), SLOPE)
        top_BK = linear_BC.topk(self.top, dim=1).values
        return self.decide(torch.cat([seen_BH, top_BK], dim=1)).squeeze(1)


class FusionAsmSettings(_TwoClassifiersSettings):
    """A small network says for each image which of the two classifiers to ask.

    It sees the `top` largest linear logits and `hidden` numbers made of the feature.
    """

    top: int = Field(100, ge=1)
    hidden: int = Field(50, ge=1)


@register_method("fusion_asm", FusionAsmSettings)
class FusionAsm(LinearAndNcm):
    """The nearest mean answers where the selector's sigmoid is above one half, the linear classifier elsewhere.

    The selector learns by binary cross-entropy; images to be handed over and the others count one half each, as in
    batches drawn evenly from both. Every rank holds it whole and computes the same loss of the whole batch.
    """

    hits_3: torch.Tensor

    def __init__(
        self, config: FusionAsmSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.selector = Selector(network.dim, config.hidden, min(config.top, num_classes))
        # Of the epoch: handed over rightly, wrongly, and missed. Part of the state, so that a resumed epoch counts on.
        self.register_buffer("hits_3", torch.zeros(3, dtype=torch.int64))

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        if not context.step:
            self.hits_3.zero_()

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        both, label_B = self.logit_pair(feature), feature.batch_split.gather(batch.label_B)
        wanted_B = (both.linear_BC.argmax(dim=1) != label_B) & (both.ncm_BC.argmax(dim=1) == label_B)
        score_B = self.selector(feature.global_BD, both.linear_BC)
        chosen_B = score_B.detach() > 0
        counted = torch.stack([(chosen_B & wanted_B).sum(), (chosen_B & ~wanted_B).sum(), (~chosen_B & wanted_B).sum()])
        return StepOutput(even_cross_entropy(score_B, wanted_B), after=lambda: self.hits_3.add_(counted))

    def diagnostics(self) -> Mapping[str, float]:
        """F1 of the epoch's choices on the training images: 2 right / (2 right + wrong + missed)."""
        right, wrong, missed = self.hits_3.tolist()
        return {"selector_f1": 2 * right / max(2 * right + wrong + missed, 1)}

    def logits(self, image_B3HW: torch.Tensor) -> ReplicatedLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        both = self.logit_pair(feature)
        hand_over_B1 = self.selector(feature.global_BD, both.linear_BC)[:, None] > 0
        return self.given(torch.where(hand_over_B1, both.ncm_BC, both.linear_BC), feature)


def even_cross_entropy(score_B: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
    """Half the mean over the images that are wanted plus half that over the others, a scalar."""
    term_B = F.binary_cross_entropy_with_logits(score_B, wanted_B.to(score_B.dtype), reduction="none")
    return (mean_where(term_B, wanted_B) + mean_where(term_B, ~wanted_B)) / 2


class FusionKtSettings(MethodSettings):
    """A second linear classifier that learns from the nearest class mean while the network trains.

    Where the nearest mean is right, a share of `transfer` of its loss is to answer as that does. The means are taken
    after the share `memory_start` of the stage's epochs, from then on they follow the features at `rate`.
    """

    scaled: bool = True
    transfer: float = Field(0.8, ge=0, le=1)
    memory_start: float = Field(0.01, ge=0, lt=1)
    rate: float = Field(0.1, gt=0, le=1)


@register_method("fusion_kt", FusionKtSettings)
class FusionKt(Method):
    """Network and first head learn by cross-entropy; the second head, which answers, learns on the same features.

    Into these it sends no gradient. Images whose nearest mean is right teach it by (1 - transfer) cross-entropy +
    transfer * KL(nearest mean || second head), the others by cross-entropy; each kind's mean counts whole, as in the
    released code. Before the means are taken, all images are others.
    """

    def __init__(
        self, config: FusionKtSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.config = config
        self.first = LinearHead(network.dim, num_classes)
        self.head = LinearHead(network.dim, num_classes)
        self.ncm = NcmHead(network.dim, num_classes, rate=config.rate)
        self._due = False

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        heads = [*self.first.parameters(), *self.head.parameters()]
        return {"network": list(self.network.parameters()), "head": heads}

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        self._due = context.epoch_fraction >= self.config.memory_start

    @property
    def needs_dataset_pass(self) -> bool:
        return self._due and not self.ncm.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        self.ncm.accumulate(GatheredFeatures.gather(self.features(batch.image_B3HW)), batch.label_B)

    def end_dataset_pass(self) -> None:
        self.ncm.finish()

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        still = GatheredFeatures(feature.local_bD.detach(), feature.global_BD.detach(), feature.batch_split)
        first = self.first(feature)
        cross_entropy = first.cross_entropy(batch.label_B)
        label_B = feature.batch_split.gather(batch.label_B)
        if self._due:
            transferred = self._transfer(self.head(still).full_BC, first.full_BC.detach(), still, label_B)
        else:
            transferred = self.head(still).cross_entropy(batch.label_B)
        return StepOutput(
            cross_entropy + transferred,
            {"cross_entropy": cross_entropy.detach(), "transfer_loss": transferred.detach()},
            after=(lambda: self.ncm.update(still, batch.label_B)) if self._due else (lambda: None),
        )

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW)))

    def _transfer(
        self, second_BC: torch.Tensor, first_BC: torch.Tensor, still: GatheredFeatures, label_B: torch.Tensor
    ) -> torch.Tensor:
        """The second head's loss, a scalar, the same on every rank."""
        ncm_BC = self.ncm(still).full_BC
        if self.config.scaled:
            ncm_BC = to_range_of(first_BC, ncm_BC)
        right_B = ncm_BC.argmax(dim=1) == label_B
        own_B = F.cross_entropy(second_BC, label_B, reduction="none")
        share = self.config.transfer
        taught_B = (1 - share) * own_B + share * distillation_kl(second_BC, ncm_BC)
        return mean_where(taught_B, right_B) + mean_where(own_B, ~right_B)
