"""Multi-expert methods: RIDE, its expert router, and independent experts.

b images of this rank, B of all ranks, K experts, J = K - 1 routing decisions, C classes, D feature, H hidden units.
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
from facelt.distributed.ddp import convert_batch_norms
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
from facelt.methods.base import (
    Embeddings,
    FrozenBackboneMethod,
    Method,
    SamplerSpec,
    StepContext,
    StepOutput,
    TrainBatch,
)
from facelt.methods.classify import ClassificationLoss, check_ldam_scale
from facelt.models.network import Network


class MultiExpertMethod(Method):
    """Base class: K experts, each a branch of the network with a classifier; the ensemble is their mean logits.

    The embedding concatenates the unit features of the experts, scaled to unit length: the inner product of two
    embeddings is the mean cosine of the experts.
    """

    is_branched = True

    def __init__(self, network: Network, num_classes: int, sampler: str, head: str, **options: float) -> None:
        """`head` is the registered name of the classifiers, built with `options`."""
        super().__init__(network)
        self.sampler = sampler
        self.heads = nn.ModuleList(HEADS[head](network.dim, num_classes, **options) for _ in range(network.branches))

    @property
    def dim(self) -> int:
        return self.network.branches * self.network.dim

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler),)

    def expert_logits(self, feature: GatheredFeatures) -> list[ClassifierLogits]:
        """Returns the logits of each expert from the features of its branch."""
        return [head(branch) for head, branch in zip(self.heads, split_branches(feature), strict=True)]

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """Returns the prediction of the ensemble: the mean of the experts' logits."""
        return mean_logits(experts)

    def predict_all(self, image_B3HW: torch.Tensor) -> tuple[list[ClassifierLogits], ShardedLogits]:
        """Returns the logits of each expert and those of the ensemble."""
        feature = self.gathered_features(image_B3HW)
        experts = self.expert_logits(feature)
        return experts, self.ensemble(feature, experts)

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.predict_all(image_B3HW)[1]

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        """Returns the embeddings of branch features [B,K,D]."""
        direction_BKD = F.normalize(feature_BD, dim=2)
        return Embeddings({"direct": direction_BKD.flatten(1) / self.network.branches**0.5})


def split_branches(feature: GatheredFeatures) -> list[GatheredFeatures]:
    """Splits gathered features [b,K,D] by branch."""
    pairs = zip(feature.local_bD.unbind(dim=1), feature.global_BD.unbind(dim=1), strict=True)
    return [GatheredFeatures(local_bD, global_BD, feature.batch_split) for local_bD, global_BD in pairs]


def mean_logits(experts: Sequence[ClassifierLogits]) -> ClassifierLogits:
    """Returns the mean logits as one product: concatenated features times concatenated weights / K."""
    first, count = experts[0], len(experts)
    weight_CD = torch.cat([_effective_weights(expert.weights) for expert in experts], dim=1) / count
    bias_C = None if first.weights.bias_C is None else sum(expert.weights.bias_C for expert in experts) / count
    vector_BD = torch.cat([expert.vector_BD for expert in experts], dim=1)
    return ClassifierLogits(vector_BD, ClassWeights(weight_CD, bias_C), first.classes, first.batch_split)


def _effective_weights(weights: ClassWeights) -> torch.Tensor:
    """Returns the weights [C, D] that multiply features, normalised if the head normalises them."""
    return F.normalize(weights.weight_CD, dim=1, eps=NORM_EPS) if weights.normalize else weights.weight_CD


def stack_full_logits(experts: Sequence[ClassifierLogits]) -> torch.Tensor:
    """Returns the logits of all experts and classes for the global batch, [K, B, C], on every rank."""
    return torch.stack([expert.full_BC for expert in experts])


def truncate_to_shortest(batches: Sequence[TrainBatch]) -> list[TrainBatch]:
    """Returns the batches cut to the shortest one; unreadable images make batches shorter."""
    size = min(len(batch.label_B) for batch in batches)
    return [TrainBatch(batch.image_B3HW[:size], batch.label_B[:size]) for batch in batches]


class DistillationSettings(StrictModel):
    """Distillation of the teacher into the experts' mean: `weight` T^2 KL(teacher / T || mean / T), `temperature` T.

    With `teacher_mode: train` the batch norms of the teacher normalise by the statistics of the batch, as in the
    released code, with `eval` by its running ones.
    """

    temperature: float = Field(1.5, gt=0)
    weight: float = Field(1.0, gt=0)
    teacher_mode: Literal["train", "eval"] = "eval"


class RideSettings(MethodSettings):
    """One expert per branch, each with the individual `loss` and class `weights`.

    `diversity` weights the divergence of an expert from the mean; it is negative, so that experts become diverse. After
    the fraction `temperature_start` of the epochs, each class has its own temperature in that term, at a distance from
    1 set by `temperature_spread`. `collaborative` trains only the mean of the experts, without diversity.
    `distillation` needs one teacher. `sampler` draws the images of an epoch; `scale` multiplies the cosines of the
    experts' classifiers.
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
    def _margins_fit_the_scale(self) -> "RideSettings":
        check_ldam_scale(self.loss, "cosine", self.scale)
        return self


@register_method("ride", RideSettings)
class Ride(MultiExpertMethod):
    """RIDE: routing diverse distribution-aware experts (Wang et al., ICLR 2021).

    Each expert has its individual loss and a term for its divergence from the mean. A teacher's mean logits are
    distilled into the mean of the experts. As in the released code, the whole loss is then multiplied by K: the
    published figures were trained with steps that much larger.
    """

    weight_C: torch.Tensor | None
    temperature_C: torch.Tensor | None

    def __init__(
        self, config: RideSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.config = config
        self.individual_loss: LogitLoss | None = None
        weight_C = temperature_C = None
        if counts_C is not None:
            self.individual_loss = LOSSES[config.loss.name](counts_C, **config.loss.options)
            temperature_C = diversity_temperature(counts_C, config.temperature_spread)
            if config.weights is not None:
                weight_C = CLASS_WEIGHTS[config.weights.name](counts_C, **config.weights.options)
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.register_buffer("temperature_C", temperature_C, persistent=False)

    def set_teachers(self, teachers: Sequence[Method]) -> None:
        """Sets the teacher of the distillation, in the mode of the settings."""
        super().set_teachers(teachers)
        for teacher in teachers:
            if self.config.distillation.teacher_mode == "train":
                convert_batch_norms(teacher, next(teacher.parameters()).device)
                teacher.train()

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        expert_KBC = stack_full_logits(self.expert_logits(feature))
        loss = self._ride(expert_KBC, feature.batch_split.gather(batch.label_B), context)
        if self.config.distillation is None:
            return StepOutput(loss)
        distillation = self._distillation_loss(expert_KBC.mean(dim=0), batch.image_B3HW)
        total = len(expert_KBC) * (loss + self.config.distillation.weight * distillation)
        return StepOutput(total, {"ride": loss.detach(), "distillation": distillation.detach()})

    def _ride(self, expert_KBC: torch.Tensor, label_B: torch.Tensor, context: StepContext) -> torch.Tensor:
        weights = self.config.weights
        weight_C = self.weight_C if weights is not None and context.epoch_fraction >= weights.start else None
        if self.config.collaborative:
            return len(expert_KBC) * self.individual_loss(expert_KBC.mean(dim=0), label_B, weight_C)
        temperature_C = self.temperature_C if context.epoch_fraction >= self.config.temperature_start else None
        return ride_loss(
            expert_KBC,
            label_B,
            self.individual_loss,
            diversity=self.config.diversity,
            weight_C=weight_C,
            temperature_C=temperature_C,
        )

    def _distillation_loss(self, mean_BC: torch.Tensor, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Returns T^2 times the divergence of the experts' mean from the teacher."""
        (teacher,) = self.teachers
        with torch.no_grad():
            teacher_BC = teacher.logits(image_B3HW).full_BC
        temperature = self.config.distillation.temperature
        return temperature**2 * distillation_kl(mean_BC, teacher_BC, temperature).mean()


class Router(nn.Module):
    """Decides after each expert but the last if the next one is used.

    Each decision has one layer, on the unit feature of the expert; a shared layer also reads the largest of the mean
    logits of the experts so far.
    """

    def __init__(self, decisions: int, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.hidden = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(decisions))
        self.decide = nn.Linear(top + hidden, 1)
        for layer in (*self.hidden, self.decide):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, feature_BKD: torch.Tensor, running_mean_JBC: torch.Tensor) -> torch.Tensor:
        """Returns scores [J, B], positive if the next expert is to be used."""
        scores = []
        features = feature_BKD.unbind(dim=1)[:-1]
        for layer, feature_BD, mean_BC in zip(self.hidden, features, running_mean_JBC, strict=True):
            hidden_BH = layer(F.normalize(feature_BD, dim=1)).relu()
            top_BT = mean_BC.topk(self.top, dim=1).values
            scores.append(self.decide(torch.cat([top_BT, hidden_BH], dim=1))[:, 0])
        return torch.stack(scores)


class RideRouterSettings(MethodSettings):
    """The router reads `hidden` units of the feature and the `top` largest mean logits (or all, if fewer).

    It starts from a RIDE stage, which stays frozen. Images that a later expert would classify correctly weigh
    `pos_weight` times the others. `sampler` draws the images of an epoch; `scale` multiplies the cosines of the
    experts' classifiers.
    """

    sampler: SamplerName = "class_balanced"
    scale: float = Field(30.0, gt=0)
    hidden: int = Field(16, ge=1)
    top: int = Field(30, ge=1)
    pos_weight: float = Field(100.0, gt=0)


@register_method("ride_router", RideRouterSettings)
class RideRouter(MultiExpertMethod, FrozenBackboneMethod):
    """RIDE's expert assignment: trains a router on frozen experts; each image uses as many experts as it needs.

    The prediction is the mean of the experts used. The network still runs all branches on every image: the saving is
    reported in the diagnostics, but not realised.
    """

    def __init__(
        self, config: RideRouterSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.classes = ClassRange.local(num_classes)
        self.requires_grad_(False)
        self.router = Router(network.branches - 1, network.dim, config.hidden, min(config.top, num_classes))
        self.register_buffer("pos_weight", torch.tensor(config.pos_weight), persistent=False)
        self._used, self._images = 0, 0

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the heads of the experts. Raises UserError if the earlier stage has none like them."""
        for expert, head in enumerate(self.heads):
            load_head(head, state, f"heads.{expert}.")

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        """Returns the loss of the global batch; every rank computes it, and so the full gradient of the router."""
        (batch,) = batches
        with torch.no_grad():
            feature = self.gathered_features(batch.image_B3HW)
            running_mean_KBC = running_means(stack_full_logits(self.expert_logits(feature)))
        target_JB = later_experts_help(running_mean_KBC.argmax(dim=2) == feature.batch_split.gather(batch.label_B))
        score_JB = self.router(feature.global_BD, running_mean_KBC[:-1])
        loss = F.binary_cross_entropy_with_logits(score_JB, target_JB.to(score_JB.dtype), pos_weight=self.pos_weight)
        return StepOutput(loss, {"experts_used": num_experts_used(score_JB.detach()).float().mean()})

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """Returns the mean logits of the experts that each image uses."""
        running_mean_KBC = running_means(stack_full_logits(experts))
        used_B = num_experts_used(self.router(feature.global_BD, running_mean_KBC[:-1]))
        self._used += int(used_B.sum())
        self._images += len(used_B)
        chosen_BC = running_mean_KBC[used_B - 1, torch.arange(len(used_B), device=used_B.device)]
        return ReplicatedLogits(chosen_BC, self.classes, feature.batch_split)

    def diagnostics(self) -> Mapping[str, float]:
        """Returns the mean number of experts used by the images predicted since the last call."""
        used, images = self._used, self._images
        self._used, self._images = 0, 0
        return {"experts_per_image": used / images} if images else {}


def running_means(expert_KBC: torch.Tensor) -> torch.Tensor:
    """Returns the mean logits of the first 1, 2, ..., K experts, [K, B, C]."""
    count_K = torch.arange(1, len(expert_KBC) + 1, device=expert_KBC.device)
    return expert_KBC.cumsum(dim=0) / count_K[:, None, None]


def later_experts_help(is_correct_KB: torch.Tensor) -> torch.Tensor:
    """Returns [J, B]: the running mean is wrong and that of more experts is correct."""
    later_correct_KB = is_correct_KB.flip(0).cummax(dim=0).values.flip(0)
    return ~is_correct_KB[:-1] & later_correct_KB[1:]


def num_experts_used(score_JB: torch.Tensor) -> torch.Tensor:
    """Returns the number of experts each image uses, [B]: scores [J, B] are followed while they are positive."""
    return 1 + (score_JB > 0).long().cumprod(dim=0).sum(dim=0)


class IndependentSettings(MethodSettings):
    """Experts with separate samples of the training set; `branches: {split: none}` makes them fully independent.

    `sampler` draws each expert's images of an epoch; `head`, `loss` and class `weights` are those of every expert. The
    `average` of the ensemble is over logits or probabilities. `scale` multiplies the cosines of the head `cosine`.
    """

    sampler: SamplerName = "instance"
    head: Literal["linear", "cosine"] = "cosine"
    scale: float = Field(30.0, gt=0)
    loss: LossConfig = LdamSettings(name="ldam")
    weights: ClassWeightsConfig | None = ClassBalancedSettings(name="class_balanced", start=0.8)
    average: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="after")
    def _margins_fit_the_scale(self) -> "IndependentSettings":
        check_ldam_scale(self.loss, self.head, self.scale)
        return self


@register_method("independent", IndependentSettings)
class Independent(MultiExpertMethod):
    """Independently trained experts, averaged at inference: the loss is the sum of the experts' losses.

    Each expert has its own batches. Without shared layers, every expert trains as it would alone at this learning rate.
    """

    def __init__(
        self, config: IndependentSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        options = {"scale": config.scale} if config.head == "cosine" else {}
        super().__init__(network, num_classes, config.sampler, config.head, **options)
        self.classes = ClassRange.local(num_classes)
        self.average = config.average
        self.classification_loss = ClassificationLoss(config.loss, config.weights, counts_C)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return tuple(SamplerSpec(self.sampler, draw=expert) for expert in range(self.network.branches))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        batches = truncate_to_shortest(batches)
        feature = self.gathered_features(*(batch.image_B3HW for batch in batches))
        losses = [
            self.classification_loss(expert, batch.label_B, context)
            for expert, batch in zip(self.expert_logits(feature), batches, strict=True)
        ]
        parts = {f"expert_{number}": loss.detach() for number, loss in enumerate(losses, start=1)}
        return StepOutput(sum(losses), parts)

    def ensemble(self, feature: GatheredFeatures, experts: Sequence[ClassifierLogits]) -> ShardedLogits:
        """Returns the mean logits, or the logarithm of the mean probabilities."""
        if self.average == "logits":
            return mean_logits(experts)
        log_mean_BC = stack_full_logits(experts).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(experts))
        return ReplicatedLogits(log_mean_BC, self.classes, experts[0].batch_split)
