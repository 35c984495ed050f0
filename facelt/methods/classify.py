"""The loss of a classifier's logits, with the class weights of the moment.

b images of this rank, C classes.

Mixing: steps on blends of two images, which answer for both labels.

b images of this rank, C classes.

A classifier on the feature, trained by one loss; by cross-entropy it is the plain model.

B images of all ranks, W ranks, D feature.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import (
    CLASS_WEIGHTS,
    HEADS,
    LOSSES,
    METRIC_LOSSES,
    MIXINGS,
    SamplerName,
    register_method,
    register_mixing,
)
from facelt.config.train import MethodSettings, StageConfig
from facelt.distributed.comm import gather_replicated
from facelt.distributed.logits import ClassifierLogits, GatheredFeatures, ShardedLogits
from facelt.heads.classifiers import CombinedMargin, load_head
from facelt.losses.classification import ClassWeightsConfig, LogitLoss, LossConfig
from facelt.losses.metric import MetricLossConfig
from facelt.methods.base import Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.cam_sampling import ForegroundMoves, ForegroundSettings
from facelt.models.network import Network


def check_scale(loss: LossConfig, head: str, scale: float) -> None:
    """ValueError unless the margins of LDAM are of the size of the logits they are taken off."""
    if loss.name == "ldam" and (head != "cosine" or loss.scale != scale):
        found = f"scale {scale:g}" if head == "cosine" else f"the head {head}"
        raise ValueError(f"loss.scale: ldam's {loss.scale:g} is of a cosine head with that scale, here is {found}")


class ClassificationLoss(nn.Module):
    """Plain cross-entropy stays split over the ranks; every rank computes another loss whole, from all classes' logits.

    Class weights count from their share of the stage's epochs on. Without `counts_C` nothing but the plain
    cross-entropy can be trained.
    """

    weight_C: torch.Tensor | None

    def __init__(self, loss: LossConfig, weights: ClassWeightsConfig | None, counts_C: torch.Tensor | None) -> None:
        super().__init__()
        self.plain = loss.name == "softmax" and weights is None
        self.loss: LogitLoss | None = None
        weight_C = None
        if counts_C is not None and not self.plain:
            self.loss = LOSSES[loss.name](counts_C, **loss.options)
            weight_C = None if weights is None else CLASS_WEIGHTS[weights.name](counts_C, **weights.options)
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.start = 0.0 if weights is None else weights.start

    def forward(self, logits: ClassifierLogits, label_b: torch.Tensor, context: StepContext) -> torch.Tensor:
        """The loss of the global batch, a scalar, the same on every rank."""
        if self.plain:
            return logits.cross_entropy(label_b)
        if self.loss is None:
            raise RuntimeError("a method built without the counts of the classes is used, not trained")
        weight_C = self.weight_C if context.epoch_fraction >= self.start else None
        full_BC = logits.full_BC
        generator = context.generator(full_BC.device, same_on_all_ranks=True)
        return self.loss(full_BC, logits.batch_split.gather(label_b), weight_C, generator)


@dataclass(frozen=True)
class Blend:
    """Each image with the share `lam` and its partner with the rest, and the labels that answer for these shares."""

    lam: float
    partner_b: torch.Tensor
    label_b: torch.Tensor
    partner_label_b: torch.Tensor

    def of(self, value_b: torch.Tensor) -> torch.Tensor:
        """Images or features, [b, ...], blended."""
        return self.lam * value_b + (1 - self.lam) * value_b[self.partner_b]

    def loss(self, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """lam L(label) + (1 - lam) L(partner's label), whatever the loss L of labels [b] is."""
        return self.lam * loss_of(self.label_b) + (1 - self.lam) * loss_of(self.partner_label_b)


class MixupSettings(NamedSettings):
    """The first image's share of a blend is drawn from Beta(alpha, alpha)."""

    alpha: float = Field(1.0, gt=0)


@register_mixing("input", MixupSettings)
class Mixup(nn.Module):
    """Input mixup (Zhang et al., ICLR 2018): images blended, one share a step drawn from Beta(alpha, alpha).

    The share is the same on all ranks. Partners are an order of the rank's own images, drawn by each for itself, so
    with other numbers of ranks, or of micro-batches, other images meet.
    """

    on_features = False

    def __init__(self, counts_C: torch.Tensor | None, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def draw(self, label_b: torch.Tensor, context: StepContext, generator: torch.Generator) -> Blend:
        """The step's blend; the partners are drawn from a generator of the CPU."""
        lam = self._share(context)
        partner_b = torch.randperm(len(label_b), generator=generator).to(label_b.device)
        return Blend(lam, partner_b, *self.labels(lam, label_b, label_b[partner_b]))

    def labels(
        self, lam: float, label_b: torch.Tensor, partner_label_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which labels answer for lam and for 1 - lam."""
        return label_b, partner_label_b

    def _share(self, context: StepContext) -> float:
        # Beta takes no generator.
        with torch.random.fork_rng(devices=[]):
            seed = torch.randint(2**63 - 1, (), generator=context.generator("cpu", same_on_all_ranks=True))
            torch.default_generator.manual_seed(seed.item())
            return torch.distributions.Beta(self.alpha, self.alpha).sample().item()


@register_mixing("manifold", MixupSettings)
class ManifoldMixup(Mixup):
    """Manifold mixup (Verma et al., ICML 2019) at one place, the feature that the head reads."""

    on_features = True


class RemixSettings(MixupSettings):
    """The label is the rarer class if the other has `kappa` times its images and less than `tau` of the blend."""

    kappa: float = Field(3.0, gt=1)
    tau: float = Field(0.5, ge=0, le=1)


@register_mixing("remix", RemixSettings)
class Remix(Mixup):
    """Input mixup whose labels favour the rare class (Chou et al., ECCV 2020 workshop, equation 10).

    Where one image's class has at least `kappa` times the training images of the other's, and less than `tau` of the
    blend, the other's label answers for all of it.
    """

    counts_C: torch.Tensor | None

    def __init__(self, counts_C: torch.Tensor | None, *, alpha: float, kappa: float, tau: float) -> None:
        super().__init__(counts_C, alpha=alpha)
        self.register_buffer("counts_C", counts_C, persistent=False)
        self.kappa, self.tau = kappa, tau

    def labels(
        self, lam: float, label_b: torch.Tensor, partner_label_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count_b, partner_count_b = self.counts_C[label_b], self.counts_C[partner_label_b]
        partner_only_b = (count_b >= self.kappa * partner_count_b) & (lam < self.tau)
        own_only_b = (partner_count_b >= self.kappa * count_b) & (1 - lam < self.tau)
        return (
            torch.where(partner_only_b, partner_label_b, label_b),
            torch.where(own_only_b, label_b, partner_label_b),
        )


class ClassifySettings(MethodSettings):
    """A classifier on the feature; by cross-entropy it is the plain model.

    The `loss` on the logits may be another, with class `weights`, and a `metric_loss` on the features beside it. All
    but plain cross-entropy ask for the logits of all classes at once: they are for the linear and the cosine head, and
    for thousands of classes. `ldam` takes cosines at its own scale, `sigmoid_focal` a linear head.

    `scale` multiplies the cosines of the heads `cosine` (16 by default) and `margin` (64); with `learn_scale` that of
    `cosine` is learned from there on. `margins` are those of the head `margin`: cos(m1 theta + m2) - m3, so (1, 0.5, 0)
    is ArcFace and (1, 0, 0.4) CosFace. Below a `sample_rate` of 1 these two heads train on the batch's own identities
    and a draw of the others, that share in all (Partial FC). With `keep_head` the head goes on from the stage it starts
    from, instead of anew.

    `mix` trains on blends of two images. `move_foreground` asks for one of the `teachers`, a linear classifier on the
    averaged map, which says what is foreground.

    With `shots` it is an expert: trained on the images of many-, medium- or few-shot classes alone.
    """

    sampler: SamplerName = "instance"
    shots: Literal["many", "medium", "few"] | None = None
    head: Annotated[str, HEADS.name_choice()] = "linear"
    scale: float | None = Field(None, gt=0)
    learn_scale: bool = False
    margins: tuple[float, float, float] | None = None
    sample_rate: float = Field(1.0, gt=0, le=1)
    keep_head: bool = False
    loss: LossConfig = NamedSettings(name="softmax")
    weights: ClassWeightsConfig | None = None
    metric_loss: MetricLossConfig | None = None
    mix: Annotated[MixupSettings, MIXINGS.choice()] | None = None
    move_foreground: ForegroundSettings | None = None

    @property
    def num_teachers(self) -> range:
        return range(1) if self.move_foreground is None else range(1, 2)

    def teacher_error(self, stage: StageConfig) -> str | None:
        is_map_read = stage.embedding == "none" and getattr(stage.method, "head", "linear") == "linear"
        if self.move_foreground is not None and not is_map_read:
            return (
                "has no linear classifier on the averaged map, which move_foreground asks for: give that stage "
                "embedding: none and the method classify with head: linear"
            )
        return None

    @model_validator(mode="after")
    def _blends_have_a_loss(self) -> "ClassifySettings":
        if self.mix is not None and self.metric_loss is not None:
            raise ValueError("mix: a blend has no one class, which metric_loss asks for; use one of the two")
        if self.mix is not None and self.sample_rate < 1:
            raise ValueError("mix: a blend has two classes, and sample_rate keeps but one of them; drop sample_rate")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_head(self) -> "ClassifySettings":
        if self.loss.name == "softmax" and self.weights is None:
            return self
        key = "loss" if self.weights is None else "weights"
        if self.head == "margin":
            raise ValueError(f"{key}: the head margin has a loss of its own; use the head linear or cosine")
        if self.sample_rate < 1:
            raise ValueError(f"{key}: only plain cross-entropy does with a sample of the classes; drop sample_rate")
        if self.loss.name == "sigmoid_focal" and self.head != "linear":
            raise ValueError(f"loss: sigmoid_focal starts from the bias of the head linear; {self.head} has none")
        if self.loss.name == "ldam" and (self.head != "cosine" or self.scale != self.loss.scale):
            raise ValueError(
                f"loss: ldam takes its margins off cosines times {self.loss.scale:g}; write head: cosine and "
                f"scale: {self.loss.scale:g}"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_the_head(self) -> "ClassifySettings":
        if self.scale is not None and self.head == "linear":
            raise ValueError("scale: the head linear has none; it belongs to cosine and margin")
        if self.learn_scale and (self.head != "cosine" or self.loss.name == "ldam"):
            raise ValueError("learn_scale: only the head cosine learns its scale, and not with ldam, which is at one")
        if self.margins is not None and self.head != "margin":
            raise ValueError(f"margins: the head {self.head} has none; they belong to the head margin")
        if self.sample_rate < 1 and self.head == "linear":
            raise ValueError("sample_rate: the head linear trains all identities; below 1 is for cosine and margin")
        return self


@register_method("classify", ClassifySettings)
class Classify(Method):
    """One head, one loss on its logits, and one on the features if asked for; the images may be blends, or moved.

    What a step with plain cross-entropy hands to the collectives on each rank, as bytes of the whole that is gathered
    or summed: with B images of all ranks and P = W * the most of one rank, 4 P D + 8 P + 12 B + 8 W forward (features,
    labels, maximum, sum and own logit, the ranks' numbers of images) and 4 P D back, for every head and any number of
    identities. Where identities are sampled the labels travel twice, 8 P more. Another loss gathers the logits of all
    classes instead of the 12 B. A metric loss gathers features and labels once more, 4 P D + 8 P.
    A blend has two losses of the same logits.
    """

    def __init__(
        self, config: ClassifySettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.keep_head = config.keep_head
        self.sampler, self.shots = config.sampler, config.shots
        options = {} if config.scale is None else {"scale": config.scale}
        if config.margins is not None:
            options["margin"] = CombinedMargin(*config.margins)
        if config.learn_scale:
            options["learn_scale"] = True
        if config.sample_rate < 1:
            options["sample_rate"] = config.sample_rate
        self.head = HEADS[config.head](network.dim, num_classes, **options)
        if config.loss.name == "sigmoid_focal":
            # Every sigmoid starts at 1 / C, so that the many wrong classes do not drown the own one.
            nn.init.constant_(self.head.bias, -math.log(max(num_classes - 1, 1)))
        self.objective = ClassificationLoss(config.loss, config.weights, counts_C)
        self.metric_loss = config.metric_loss
        self.mixing = None if config.mix is None else MIXINGS[config.mix.name](counts_C, **config.mix.options)
        moves = config.move_foreground
        self.moves = None if moves is None else ForegroundMoves(counts_C, moves.threshold)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler, self.shots),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """With `keep_head` the head goes on where the earlier stage's ended; otherwise it starts anew."""
        if self.keep_head:
            load_head(self.head, state)

    def set_teachers(self, teachers: Sequence[Method]) -> None:
        """With `move_foreground`, from the one teacher that says what is foreground."""
        super().set_teachers(teachers)
        if self.moves is not None:
            self.moves.set_teacher(teachers[0])

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        generator = context.generator("cpu")
        if self.moves is not None:
            batch = self.moves(batch, self.teachers[0], generator)
        if self.mixing is not None:
            return self._mixed_step(self.mixing.draw(batch.label_B, context, generator), batch, context)
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        logits = self.head.training_logits(feature, batch.label_B, context.global_step)
        loss = self.objective(logits, batch.label_B, context)
        if self.metric_loss is None:
            return StepOutput(loss)
        global_BD = gather_replicated(feature.local_bD, feature.batch_split)
        label_B = feature.batch_split.gather(batch.label_B)
        metric = METRIC_LOSSES[self.metric_loss.name](global_BD, label_B, **self.metric_loss.options)
        parts = {"classification_loss": loss.detach(), "metric_loss": metric.detach()}
        return StepOutput(loss + self.metric_loss.weight * metric, parts)

    def _mixed_step(self, blend: Blend, batch: TrainBatch, context: StepContext) -> StepOutput:
        if self.mixing.on_features:
            feature = GatheredFeatures.gather(blend.of(self.features(batch.image_B3HW)))
        else:
            feature = GatheredFeatures.gather(self.features(blend.of(batch.image_B3HW)))
        logits = self.head.training_logits(feature, blend.label_b, context.global_step)
        return StepOutput(blend.loss(lambda label_b: self.objective(logits, label_b, context)))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW)))
