"""Single-classifier training: plain, margin, re-weighted and metric losses, class priors, Partial FC.

B images of all ranks, b of this rank, W ranks, C classes, D feature.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import (
    CLASS_WEIGHTS,
    HEADS,
    LOSSES,
    MARGINS,
    METRIC_LOSSES,
    MIXINGS,
    SamplerName,
    register_method,
)
from facelt.config.train import MethodSettings, StageConfig
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import gather_replicated
from facelt.distributed.logits import ClassifierLogits, GatheredFeatures
from facelt.errors import UserError
from facelt.heads.classifiers import load_head
from facelt.heads.memory import ClassMeans
from facelt.losses.classification import ClassWeightsConfig, LogitLoss, LossConfig
from facelt.losses.metric import MetricLossConfig
from facelt.methods.base import ClassifierInit, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.cam_sampling import ForegroundSettings, ForegroundTransform
from facelt.methods.mixing import Blend, MixupSettings
from facelt.metrics.classification import ShotBand
from facelt.models.network import Network


def check_ldam_scale(loss: LossConfig, head: str, scale: float) -> None:
    """Raises ValueError unless the scale of an LDAM loss is that of the cosine head."""
    if loss.name == "ldam" and (head != "cosine" or loss.scale != scale):
        actual = f"scale {scale:g}" if head == "cosine" else f"head {head}"
        raise ValueError(f"loss.scale: ldam's {loss.scale:g} needs a cosine head with the same scale, not {actual}")


class ClassificationLoss(nn.Module):
    """Loss of a classifier's logits, optionally with class weights.

    Plain cross-entropy stays class-sharded; any other loss is computed on every rank from the logits of all classes.
    Class weights apply from their `start` on. Without `counts_C` only plain cross-entropy can be trained, and only
    without a class prior.
    """

    weight_C: torch.Tensor | None
    prior_C: torch.Tensor | None

    def __init__(
        self,
        loss: LossConfig,
        weights: ClassWeightsConfig | None,
        counts_C: torch.Tensor | None,
        prior_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.is_plain = loss.name == "softmax" and weights is None
        self.loss: LogitLoss | None = None
        self.lacks_counts = counts_C is None and (prior_weight > 0 or not self.is_plain)
        weight_C = prior_C = None
        if counts_C is not None and not self.is_plain:
            self.loss = LOSSES[loss.name](counts_C, **loss.options)
            weight_C = None if weights is None else CLASS_WEIGHTS[weights.name](counts_C, **weights.options)
        if counts_C is not None and prior_weight:
            classes = ClassRange.local(len(counts_C))
            prior_C = prior_weight * counts_C[classes.first : classes.stop].double().log()
            prior_C = prior_C.to(torch.get_default_dtype())
        self.register_buffer("weight_C", weight_C, persistent=False)
        self.register_buffer("prior_C", prior_C, persistent=False)
        self.start = 0.0 if weights is None else weights.start

    def forward(self, logits: ClassifierLogits, label_b: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Returns the loss of the global batch, a scalar, equal on all ranks."""
        if self.lacks_counts:
            raise RuntimeError("training needs the class counts; this method was built without them")
        if self.is_plain:
            return logits.cross_entropy(label_b, self.prior_C)
        weight_C = self.weight_C if context.epoch_fraction >= self.start else None
        full_BC = logits.full_BC
        generator = context.generator(full_BC.device, same_on_all_ranks=True)
        return self.loss(full_BC, logits.batch_split.gather(label_b), weight_C, generator)


class ClassifySettings(MethodSettings):
    """A classifier on the feature, the `head`; the defaults give the plain cross-entropy model.

    `sampler` draws the images of an epoch: every image once (`instance`), or by class.

    `loss` is the loss of the logits, with optional class `weights`; `metric_loss` adds a loss of the features. All but
    plain cross-entropy need the logits of all classes on every rank: they require the linear or the cosine head and are
    meant for thousands of classes. `ldam` requires the cosine head at the same scale, `sigmoid_focal` the linear head.

    `scale` multiplies the cosines of the heads `cosine` (default 16) and `margin`; `learn_scale` makes that of `cosine`
    a parameter. `margin` is that of the head `margin`, by default ArcFace's (`{name: arcface, m: 0.5}`); the default
    scale is 64, of `mv_softmax` 32 and of `circle` 256. A `prior_weight` above 0 adds that times log n to the logits of
    the training loss, with n the training images of each class (logit adjustment, Menon et al., ICLR 2021).

    With `sample_rate` < 1 the heads `cosine` and `margin` train on the identities of the batch and a sample of the
    others, this fraction in total (Partial FC). `keep_head` loads the head of the stage in `init_from`;
    `classifier_init: class_means` starts the rows of these two heads at the class means of the initial network's
    features (imprinted weights, Qi et al., CVPR 2018).

    `mix` trains on blends of two images. `move_foreground` needs one teacher, a linear classifier on the averaged map,
    whose activation map locates the foreground. With `shots` the method is an expert, trained only on the images of
    many-, medium- or few-shot classes.
    """

    sampler: SamplerName = "instance"
    shots: ShotBand | None = None
    head: Annotated[str, HEADS.name_choice()] = "linear"
    scale: float | None = Field(None, gt=0)
    learn_scale: bool = False
    margin: Annotated[NamedSettings, MARGINS.choice()] | None = None
    prior_weight: float = Field(0.0, ge=0)
    sample_rate: float = Field(1.0, gt=0, le=1)
    keep_head: bool = False
    classifier_init: ClassifierInit = "random"
    loss: LossConfig = NamedSettings(name="softmax")
    weights: ClassWeightsConfig | None = None
    metric_loss: MetricLossConfig | None = None
    mix: Annotated[MixupSettings, MIXINGS.choice()] | None = None
    move_foreground: ForegroundSettings | None = None

    @property
    def needs_trained_network(self) -> bool:
        return self.classifier_init == "class_means"

    @property
    def num_teachers(self) -> range:
        return range(1) if self.move_foreground is None else range(1, 2)

    def teacher_error(self, stage: StageConfig) -> str | None:
        is_map_read = stage.embedding == "none" and getattr(stage.method, "head", "linear") == "linear"
        if self.move_foreground is not None and not is_map_read:
            return (
                "has no linear classifier on the averaged map, which move_foreground needs: give that stage "
                "embedding: none and the method classify with head: linear"
            )
        return None

    def counts_error(self, counts_C: Iterable[int]) -> str | None:
        empty = [number for number, count in enumerate(counts_C) if not count] if self.prior_weight else []
        if not empty:
            return None
        classes = f"class {empty[0]} has" if len(empty) == 1 else f"{len(empty)} classes ({empty[0]}, ...) have"
        return f"prior_weight: {classes} no training images, so log n does not exist; set prior_weight: 0"

    # Around that of unknown keys.
    @model_validator(mode="wrap")
    @classmethod
    def _read_margins(cls, values: Any, validate: Callable[[Any], Self]) -> Self:
        """Reads `margins: [m1, m2, m3]`, which earlier versions wrote to model cards, as the margin `combined`."""
        if not isinstance(values, Mapping) or "margins" not in values:
            return validate(values)
        kept = {key: value for key, value in values.items() if key != "margins"}
        factors = values["margins"]
        if factors is None:
            return validate(kept)
        if kept.get("margin") is not None or not isinstance(factors, list | tuple) or len(factors) != 3:
            example = "{name: combined, angular: 1, additive: 0.5, cosine: 0}"
            raise ValueError(f"margins: this key of earlier versions is replaced by margin, such as margin: {example}")
        combined = dict(zip(("angular", "additive", "cosine"), factors, strict=True), name="combined")
        return validate({**kept, "margin": combined})

    @model_validator(mode="after")
    def _loss_supports_mixing(self) -> "ClassifySettings":
        if self.mix is not None and self.metric_loss is not None:
            raise ValueError("mix: a blended image has two classes, but metric_loss needs one; use one of the two keys")
        if self.mix is not None and self.sample_rate < 1:
            raise ValueError("mix: a blended image has two classes, sample_rate keeps only one; remove sample_rate")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_head(self) -> "ClassifySettings":
        if self.loss.name == "softmax" and self.weights is None:
            return self
        key = "loss" if self.weights is None else "weights"
        if self.prior_weight:
            raise ValueError(f"{key}: prior_weight requires plain cross-entropy; remove one of the two keys")
        if self.head == "margin":
            raise ValueError(f"{key}: the head margin supports only plain cross-entropy; use the head linear or cosine")
        if self.sample_rate < 1:
            raise ValueError(f"{key}: sample_rate < 1 requires plain cross-entropy; remove sample_rate")
        if self.loss.name == "sigmoid_focal" and self.head != "linear":
            raise ValueError(f"loss: sigmoid_focal needs the bias of the head linear; {self.head} has none")
        if self.loss.name == "ldam" and (self.head != "cosine" or self.scale != self.loss.scale):
            raise ValueError(
                f"loss: ldam needs cosines times {self.loss.scale:g}; set head: cosine and scale: {self.loss.scale:g}"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_the_head(self) -> "ClassifySettings":
        if self.scale is not None and self.head == "linear":
            raise ValueError("scale: the head linear has no scale; it applies to cosine and margin")
        if self.learn_scale and (self.head != "cosine" or self.loss.name == "ldam"):
            raise ValueError("learn_scale: only the head cosine learns its scale, and ldam needs a fixed one")
        if self.classifier_init == "class_means" and self.head == "linear":
            raise ValueError("classifier_init: the head linear has no class means; use the head cosine or margin")
        if self.classifier_init == "class_means" and self.keep_head:
            raise ValueError("classifier_init: keep_head loads all rows of the head; use one of the two keys")
        if self.margin is not None and self.head != "margin":
            raise ValueError(f"margin: the head {self.head} has no margin; set head: margin or remove the key")
        if self.sample_rate < 1 and self.head == "linear":
            raise ValueError("sample_rate: the head linear trains all identities; < 1 applies to cosine and margin")
        return self


@register_method("classify", ClassifySettings)
class Classify(Method):
    """One head with a loss of its logits, optionally a metric loss, mixing and foreground transforms.

    Communication per step and rank with plain cross-entropy, in bytes of the gathered or reduced tensors, with P = W *
    the largest number of images on one rank: 4 P D + 8 P + 12 B + 8 W forward (features, labels, maximum, sum and
    target logit, batch sizes) and 4 P D backward, for every head and number of identities. Sampled identities send the
    labels twice, 8 P more; the margins `mv_softmax` and `circle` add the target logits, 4 B more. Another loss gathers
    the logits of all classes instead of the 12 B. A metric loss gathers features and labels again, 4 P D + 8 P. A
    blended batch has two losses of the same logits.
    """

    def __init__(
        self, config: ClassifySettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        if counts_C is not None and (reason := config.counts_error(counts_C.tolist())):
            raise UserError(reason)
        self.keep_head = config.keep_head
        self.sampler, self.shots = config.sampler, config.shots
        options = {} if config.scale is None else {"scale": config.scale}
        if config.margin is not None:
            options["margin"] = MARGINS[config.margin.name](**config.margin.options)
        if config.learn_scale:
            options["learn_scale"] = True
        if config.sample_rate < 1:
            options["sample_rate"] = config.sample_rate
        self.head = HEADS[config.head](network.dim, num_classes, **options)
        if config.loss.name == "sigmoid_focal":
            # All sigmoids start at 1 / C, so that the sum over the other classes does not dominate.
            nn.init.constant_(self.head.bias, -math.log(max(num_classes - 1, 1)))
        self.class_means: ClassMeans | None = None
        if config.classifier_init == "class_means":
            self.class_means = ClassMeans(self.head.classes, network.dim)
            # Rows that stay random because their class has no image; below 0 before the pass.
            self.register_buffer("random_rows", torch.tensor(-1))
        self.classification_loss = ClassificationLoss(config.loss, config.weights, counts_C, config.prior_weight)
        self.metric_loss = config.metric_loss
        self.mixing = None if config.mix is None else MIXINGS[config.mix.name](counts_C, **config.mix.options)
        foreground = config.move_foreground
        self.foreground_transform = None if foreground is None else ForegroundTransform(counts_C, foreground.threshold)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler, self.shots),)

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the head if `keep_head` is set."""
        if self.keep_head:
            load_head(self.head, state)

    @property
    def needs_dataset_pass(self) -> bool:
        return self.class_means is not None and bool(self.random_rows < 0)

    def observe(self, batch: TrainBatch) -> None:
        self.class_means.add(self.gathered_features(batch.image_B3HW), batch.label_B)

    def end_dataset_pass(self) -> None:
        self.random_rows.fill_(self.head.imprint(*self.class_means.finish()))

    def diagnostics(self) -> Mapping[str, float]:
        """Returns the number of rows of the head that have no class mean, if there are any."""
        random_rows = 0 if self.class_means is None else int(self.random_rows)
        return {"random_rows": random_rows} if random_rows else {}

    def set_teachers(self, teachers: Sequence[Method]) -> None:
        """Sets the teacher of `move_foreground`."""
        super().set_teachers(teachers)
        if self.foreground_transform is not None:
            self.foreground_transform.set_teacher(teachers[0])

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        generator = context.generator(batch.label_B.device)
        if self.foreground_transform is not None:
            batch = self.foreground_transform(batch, self.teachers[0], generator)
        if self.mixing is not None:
            return self._mixed_step(self.mixing.draw(batch.label_B, context, generator), batch, context)
        feature = self.gathered_features(batch.image_B3HW)
        logits = self.head.training_logits(feature, batch.label_B, context.global_step)
        loss = self.classification_loss(logits, batch.label_B, context)
        after = partial(self.head.after_step, feature)
        if self.metric_loss is None:
            return StepOutput(loss, after=after)
        global_BD = gather_replicated(feature.local_bD, feature.batch_split)
        label_B = feature.batch_split.gather(batch.label_B)
        metric = METRIC_LOSSES[self.metric_loss.name](global_BD, label_B, **self.metric_loss.options)
        parts = {"classification_loss": loss.detach(), "metric_loss": metric.detach()}
        return StepOutput(loss + self.metric_loss.weight * metric, parts, after)

    def _mixed_step(self, blend: Blend, batch: TrainBatch, context: StepContext) -> StepOutput:
        if self.mixing.on_features:
            feature = GatheredFeatures.gather(blend.mix(self.features(batch.image_B3HW)))
        else:
            feature = self.gathered_features(blend.mix(batch.image_B3HW))
        logits = self.head.training_logits(feature, blend.label_b, context.global_step)
        loss = blend.loss(lambda label_b: self.classification_loss(logits, label_b, context))
        return StepOutput(loss, after=partial(self.head.after_step, feature))
