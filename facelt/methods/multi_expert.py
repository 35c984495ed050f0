"""What the methods of several experts share: a network of branches, a head for each, and the mean of what they say.

b images of this rank, B of all ranks, K experts, C classes, D feature.

RIDE: diverse distribution-aware experts (Wang et al., ICLR 2021).

B images of all ranks, K experts, C classes.

RIDE's expert assignment: an image is shown to one expert after the other for as long as that is expected to help.

b images of this rank, B of all ranks, K experts, J = K - 1 decisions, C classes, D feature, H hidden units.

Experts trained apart and averaged in the test.

b images of this rank, B of all ranks, K experts, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from facelt.config.base import NamedSettings, StrictModel
from facelt.config.registry import CLASS_WEIGHTS, HEADS, LOSSES, SamplerName, register_method
from facelt.config.train import MethodSettings
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.logits import (
    NORM_EPS,
    ClassifierLogits,
    ClassWeights,
    GatheredFeatures,
    ReplicatedLogits,
    ShardedLogits,
)
from facelt.heads.classifiers import load_head
from facelt.losses.classification import ClassBalancedSettings, ClassWeightsConfig, LdamSettings, LogitLoss, LossConfig
from facelt.losses.experts import distillation_kl, diversity_temperature, ride_loss
from facelt.methods.base import Embeddings, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.classify import ClassificationLoss, check_scale
from facelt.models.network import Network


class Experts(Method):
    """K experts: a branch of the network and a classifier each; together they answer the mean of their logits.

    Their embedding is the experts' directions side by side, K D long and of unit length, so that the product of two
    embeddings is the mean of the experts' cosines.
    """

    branched = True

    def __init__(self, network: Network, num_classes: int, sampler: str, head: str, **options: float) -> None:
        """`head` is a row of HEADS, built with the options."""
        super().__init__(network)
        self.sampler = sampler
        self.heads = nn.ModuleList(HEADS[head](network.dim, num_classes, **options) for _ in range(network.branches))

    @property
    def dim(self) -> int:
        return self.network.branches * self.network.dim

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.heads.parameters())}

    def shared_features(self, *image_B3HW: torch.Tensor) -> GatheredFeatures:
        """The branches' features [b,K,D], of one batch of images or of K equal ones, gathered once for all experts."""
        return GatheredFeatures.gather(self.features(*image_B3HW))

    def experts_of(self, feature: GatheredFeatures) -> list[ClassifierLogits]:
        """Each expert's logits of its own branch's features."""
        return [head(branch) for head, branch in zip(self.heads, by_branch(feature), strict=True)]

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """What the experts say together of images with these features: the mean of their logits."""
        return mean_logits(experts)

    def predict_all(self, image_B3HW: torch.Tensor) -> tuple[list[ClassifierLogits], ShardedLogits]:
        """What each expert says of the images, and what they say together."""
        feature = self.shared_features(image_B3HW)
        experts = self.experts_of(feature)
        return experts, self.ensemble(feature, experts)

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.predict_all(image_B3HW)[1]

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        """Of the branches' features [B,K,D]."""
        direction_BKD = F.normalize(feature_BD, dim=2)
        return Embeddings({"direct": direction_BKD.flatten(1) / self.network.branches**0.5})


def by_branch(feature: GatheredFeatures) -> list[GatheredFeatures]:
    """Each branch's own of features [b,K,D] that were gathered together."""
    pairs = zip(feature.local_bD.unbind(dim=1), feature.global_BD.unbind(dim=1), strict=True)
    return [GatheredFeatures(local_bD, global_BD, feature.batch_split) for local_bD, global_BD in pairs]


def mean_logits(experts: Sequence[ClassifierLogits]) -> ClassifierLogits:
    """The mean of several products: the product of the vectors side by side with a K-th of the rows side by side."""
    first, count = experts[0], len(experts)
    weight_CD = torch.cat([_lengthened(expert.weights) for expert in experts], dim=1) / count
    bias_C = None if first.weights.bias_C is None else sum(expert.weights.bias_C for expert in experts) / count
    vector_BD = torch.cat([expert.vector_BD for expert in experts], dim=1)
    return ClassifierLogits(vector_BD, ClassWeights(weight_CD, bias_C), first.classes, first.batch_split)


def _lengthened(rows: ClassWeights) -> torch.Tensor:
    """The rows [C, D] as they are multiplied: unit rows have the length 1."""
    return F.normalize(rows.weight_CD, dim=1, eps=NORM_EPS) if rows.normalize else rows.weight_CD


def whole_logits(experts: Sequence[ClassifierLogits]) -> torch.Tensor:
    """All classes' logits of every expert for the global batch, [K, B, C], on every rank."""
    return torch.stack([expert.full_BC for expert in experts])


def equal_batches(batches: Sequence[TrainBatch]) -> list[TrainBatch]:
    """The streams' batches, all as long as the shortest: an image that one of them could not read leaves a gap."""
    size = min(len(batch.label_B) for batch in batches)
    return [TrainBatch(batch.image_B3HW[:size], batch.label_B[:size]) for batch in batches]


class DistillationSettings(StrictModel):
    """The mean answer of the experts learns from the stage's teacher: `weight` T^2 KL(teacher / T || mean / T)."""

    temperature: float = Field(1.5, gt=0)
    weight: float = Field(1.0, gt=0)


class RideSettings(MethodSettings):
    """Experts that are each right by themselves and unlike their mean, one for each of the stage's `branches`.

    `diversity` is the weight of the divergence from the mean, below 0 so that experts part. From the share
    `temperature_start` of the epochs on each class has a temperature of its own there, as far from 1 as
    `temperature_spread` has it. With `collaborative` the mean alone is to be right, and no diversity is asked for.
    With `distillation` the stage has one of the `teachers`.
    """

    sampler: SamplerName = "instance"
    scale: float = Field(30.0, gt=0)
    loss: Annotated[NamedSettings, LOSSES.choice("ldam", "softmax")] = LdamSettings(name="ldam")
    weights: ClassWeightsConfig | None = ClassBalancedSettings(name="class_balanced", start=0.8)
    diversity: float = Field(-0.45, le=0)
    temperature_spread: float = Field(0.05, ge=0, lt=1)
    temperature_start: float = Field(0.8, ge=0, le=1)
    collaborative: bool = False
    distillation: DistillationSettings | None = None

    @property
    def num_teachers(self) -> range:
        return range(1) if self.distillation is None else range(1, 2)

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "RideSettings":
        check_scale(self.loss, "cosine", self.scale)
        return self


@register_method("ride", RideSettings)
class Ride(Experts):
    """Every expert is trained by the loss for itself, and to differ from the experts' mean.

    With a teacher the mean of the experts learns from the teacher's mean. As in the released code the whole loss then
    counts K times, once for each expert: the published figures are of steps so much longer.
    """

    weight_C: torch.Tensor | None
    temperature_C: torch.Tensor | None

    def __init__(
        self, config: RideSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.config = config
        self.individual: LogitLoss | None = None
        weight_C = temperature_C = None
        if counts_C is not None:
            self.individual = LOSSES[config.loss.name](counts_C, **config.loss.options)
            temperature_C = diversity_temperature(counts_C, config.temperature_spread)
            if config.weights is not None:
                weight_C = CLASS_WEIGHTS[config.weights.name](counts_C, **config.weights.options)
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.register_buffer("temperature_C", temperature_C, persistent=False)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.shared_features(batch.image_B3HW)
        expert_KBC = whole_logits(self.experts_of(feature))
        loss = self._ride(expert_KBC, feature.batch_split.gather(batch.label_B), context)
        if self.config.distillation is None:
            return StepOutput(loss)
        learnt = self._learnt(expert_KBC.mean(dim=0), batch.image_B3HW)
        total = len(expert_KBC) * (loss + self.config.distillation.weight * learnt)
        return StepOutput(total, {"ride": loss.detach(), "distillation": learnt.detach()})

    def _ride(self, expert_KBC: torch.Tensor, label_B: torch.Tensor, context: StepContext) -> torch.Tensor:
        weights = self.config.weights
        weight_C = self.weight_C if weights is not None and context.epoch_fraction >= weights.start else None
        if self.config.collaborative:
            return len(expert_KBC) * self.individual(expert_KBC.mean(dim=0), label_B, weight_C)
        temperature_C = self.temperature_C if context.epoch_fraction >= self.config.temperature_start else None
        return ride_loss(
            expert_KBC,
            label_B,
            self.individual,
            diversity=self.config.diversity,
            weight_C=weight_C,
            temperature_C=temperature_C,
        )

    def _learnt(self, mean_BC: torch.Tensor, image_B3HW: torch.Tensor) -> torch.Tensor:
        """T^2 times the divergence of the experts' mean from the teacher's answer."""
        (teacher,) = self.teachers
        with torch.no_grad():
            teacher_BC = teacher.logits(image_B3HW).full_BC
        temperature = self.config.distillation.temperature
        return temperature**2 * distillation_kl(mean_BC, teacher_BC, temperature).mean()


class Router(nn.Module):
    """Whether to ask the next expert, after each but the last: a layer of its own for each, and one they share.

    It reads the direction of the last expert's feature, and the largest of the mean logits so far.
    """

    def __init__(self, decisions: int, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.hidden = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(decisions))
        self.decide = nn.Linear(top + hidden, 1)
        for layer in (*self.hidden, self.decide):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, feature_BKD: torch.Tensor, so_far_JBC: torch.Tensor) -> torch.Tensor:
        """[J, B]: above 0 where the next expert is to be asked."""
        answers = []
        for layer, feature_BD, so_far_BC in zip(self.hidden, feature_BKD.unbind(dim=1)[:-1], so_far_JBC, strict=True):
            hidden_BH = layer(F.normalize(feature_BD, dim=1)).relu()
            answers.append(self.decide(torch.cat([so_far_BC.topk(self.top, dim=1).values, hidden_BH], dim=1))[:, 0])
        return torch.stack(answers)


class RideRouterSettings(MethodSettings):
    """Which of RIDE's experts an image is shown to, in turn; it starts from a stage of RIDE, which stands still.

    The router reads `hidden` units of an expert's feature and the `top` largest logits so far, all where there are
    fewer classes. Images that a later expert would set right weigh `pos_weight` times the others.
    """

    sampler: SamplerName = "class_balanced"
    scale: float = Field(30.0, gt=0)
    hidden: int = Field(16, ge=1)
    top: int = Field(30, ge=1)
    pos_weight: float = Field(100.0, gt=0)


@register_method("ride_router", RideRouterSettings)
class RideRouter(Experts):
    """Trains the router alone, on experts that stand still; answers with the mean of the experts an image is shown to.

    The network runs all its branches on every image, so that what routing would spare is counted and not spared.
    """

    def __init__(
        self, config: RideRouterSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.classes = ClassRange.local(num_classes)
        self.requires_grad_(False)
        self.router = Router(network.branches - 1, network.dim, config.hidden, min(config.top, num_classes))
        self.register_buffer("pos_weight", torch.tensor(config.pos_weight), persistent=False)
        self._asked, self._images = 0, 0

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        return {**groups, "head": [*groups["head"], *self.router.parameters()]}

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """The experts' heads are those of the stage it starts from. Raises UserError where that has no such ones."""
        for place, head in enumerate(self.heads):
            load_head(head, state, f"heads.{place}.")

    def train(self, mode: bool = True) -> "RideRouter":
        """The network stands still in training, its running statistics included."""
        super().train(mode)
        self.network.eval()
        return self

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        """Every rank computes the loss of the global batch, so that all have the router's whole gradient."""
        (batch,) = batches
        with torch.no_grad():
            feature = self.shared_features(batch.image_B3HW)
            so_far_KBC = means_so_far(whole_logits(self.experts_of(feature)))
        helped_JB = would_help(so_far_KBC.argmax(dim=2) == feature.batch_split.gather(batch.label_B))
        answer_JB = self.router(feature.global_BD, so_far_KBC[:-1])
        loss = F.binary_cross_entropy_with_logits(answer_JB, helped_JB.float(), pos_weight=self.pos_weight)
        return StepOutput(loss, {"experts_asked": experts_asked(answer_JB.detach()).float().mean()})

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """The mean of the experts each image is shown to."""
        so_far_KBC = means_so_far(whole_logits(experts))
        asked_B = experts_asked(self.router(feature.global_BD, so_far_KBC[:-1]))
        self._asked += int(asked_B.sum())
        self._images += len(asked_B)
        chosen_BC = so_far_KBC[asked_B - 1, torch.arange(len(asked_B), device=asked_B.device)]
        return ReplicatedLogits(chosen_BC, self.classes, feature.batch_split)

    def diagnostics(self) -> Mapping[str, float]:
        """The mean number of experts that the images answered since the last call were shown to."""
        asked, images = self._asked, self._images
        self._asked, self._images = 0, 0
        return {"experts_per_image": asked / images} if images else {}


def means_so_far(expert_KBC: torch.Tensor) -> torch.Tensor:
    """The mean logits of the first expert, of the first two, and so on, [K, B, C]."""
    count_K = torch.arange(1, len(expert_KBC) + 1, device=expert_KBC.device)
    return expert_KBC.cumsum(dim=0) / count_K[:, None, None]


def would_help(right_KB: torch.Tensor) -> torch.Tensor:
    """[J, B]: where the mean so far is wrong and that of more experts is right."""
    later_KB = right_KB.flip(0).cummax(dim=0).values.flip(0)
    return ~right_KB[:-1] & later_KB[1:]


def experts_asked(answer_JB: torch.Tensor) -> torch.Tensor:
    """How many experts an image is shown to, [B]: the first, and each next one until an answer is not above 0."""
    return 1 + (answer_JB > 0).long().cumprod(dim=0).sum(dim=0)


class IndependentSettings(MethodSettings):
    """Experts that know nothing of each other, each with its own draws of the whole training set, averaged in the end.

    They are independent with `branches: {split: none}`. `average` is that of the test: the experts' logits or
    probabilities. `scale` belongs to the head `cosine`.
    """

    sampler: SamplerName = "instance"
    head: Literal["linear", "cosine"] = "cosine"
    scale: float = Field(30.0, gt=0)
    loss: LossConfig = LdamSettings(name="ldam")
    weights: ClassWeightsConfig | None = ClassBalancedSettings(name="class_balanced", start=0.8)
    average: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "IndependentSettings":
        check_scale(self.loss, self.head, self.scale)
        return self


@register_method("independent", IndependentSettings)
class Independent(Experts):
    """The loss is the sum of the experts' own, each on batches that it draws for itself; nothing ties them together.

    So with branches that share nothing every expert moves as it would alone, but for the common learning rate.
    """

    def __init__(
        self, config: IndependentSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        options = {"scale": config.scale} if config.head == "cosine" else {}
        super().__init__(network, num_classes, config.sampler, config.head, **options)
        self.classes = ClassRange.local(num_classes)
        self.average = config.average
        self.objective = ClassificationLoss(config.loss, config.weights, counts_C)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return tuple(SamplerSpec(self.sampler, draw=expert) for expert in range(self.network.branches))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        batches = equal_batches(batches)
        feature = self.shared_features(*(batch.image_B3HW for batch in batches))
        losses = [
            self.objective(expert, batch.label_B, context)
            for expert, batch in zip(self.experts_of(feature), batches, strict=True)
        ]
        parts = {f"expert_{place}": loss.detach() for place, loss in enumerate(losses, start=1)}
        return StepOutput(sum(losses), parts)

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """The test average: of the logits, or the logarithm of the mean probabilities."""
        if self.average == "logits":
            return mean_logits(experts)
        logarithm_BC = whole_logits(experts).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(experts))
        return ReplicatedLogits(logarithm_BC, self.classes, experts[0].batch_split)
