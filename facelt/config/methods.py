"""What the settings of every method have in common.

What the methods of several experts can be told.

What the methods can be told that divide their work by how many images the classes have.

What methods can be told that put other classifiers on a feature, most of them on that of an earlier stage.

What each method can be told. A stage chooses one by its `name`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from facelt.config.base import Sampler, Strict
from facelt.config.losses import (
    ClassBalancedWeights,
    ForegroundConfig,
    LdamLoss,
    LossConfig,
    MetricLossConfig,
    MixConfig,
    SoftmaxLoss,
    WeightsConfig,
)


class AnyMethod(Strict):
    """Settings of a method, which a stage chooses by their `name`."""

    @property
    def teachers_wanted(self) -> range:
        """How many trained stages the method learns from: none, but for those that say so."""
        return range(1)

    def why_no_teacher(self, stage: Any) -> str | None:
        """What is wrong with a teacher from this stage of the same run; None where it will do."""
        return None


def check_scale(loss: LossConfig, head: str, scale: float) -> None:
    """ValueError unless the margins of LDAM are of the size of the logits they are taken off."""
    if loss.name == "ldam" and (head != "cosine" or loss.scale != scale):
        found = f"scale {scale:g}" if head == "cosine" else f"the head {head}"
        raise ValueError(f"loss.scale: ldam's {loss.scale:g} is of a cosine head with that scale, here is {found}")


class Distillation(Strict):
    """The mean answer of the experts learns from the stage's teacher: `weight` T^2 KL(teacher / T || mean / T)."""

    temperature: float = Field(1.5, gt=0)
    weight: float = Field(1.0, gt=0)


class RideConfig(AnyMethod):
    """Experts that are each right by themselves and unlike their mean, one for each of the stage's `branches`.

    `diversity` is the weight of the divergence from the mean, below 0 so that experts part. From the share
    `temperature_start` of the epochs on each class has a temperature of its own there, as far from 1 as
    `temperature_spread` has it. With `collaborative` the mean alone is to be right, and no diversity is asked for.
    With `distillation` the stage has one of the `teachers`.
    """

    name: Literal["ride"]
    sampler: Sampler = "instance"
    scale: float = Field(30.0, gt=0)
    loss: Annotated[LdamLoss | SoftmaxLoss, Field(discriminator="name")] = LdamLoss(name="ldam")
    weights: WeightsConfig | None = ClassBalancedWeights(name="class_balanced", start=0.8)
    diversity: float = Field(-0.45, le=0)
    temperature_spread: float = Field(0.05, ge=0, lt=1)
    temperature_start: float = Field(0.8, ge=0, le=1)
    collaborative: bool = False
    distillation: Distillation | None = None

    @property
    def teachers_wanted(self) -> range:
        return range(1) if self.distillation is None else range(1, 2)

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "RideConfig":
        check_scale(self.loss, "cosine", self.scale)
        return self


class RideRouterConfig(AnyMethod):
    """Which of RIDE's experts an image is shown to, in turn; it starts from a stage of RIDE, which stands still.

    The router reads `hidden` units of an expert's feature and the `top` largest logits so far, all where there are
    fewer classes. Images that a later expert would set right weigh `pos_weight` times the others.
    """

    name: Literal["ride_router"]
    sampler: Sampler = "class_balanced"
    scale: float = Field(30.0, gt=0)
    hidden: int = Field(16, ge=1)
    top: int = Field(30, ge=1)
    pos_weight: float = Field(100.0, gt=0)


class IndependentConfig(AnyMethod):
    """Experts that know nothing of each other, each with its own draws of the whole training set, averaged in the end.

    They are independent with `branches: {split: none}`. `average` is that of the test: the experts' logits or
    probabilities. `scale` belongs to the head `cosine`.
    """

    name: Literal["independent"]
    sampler: Sampler = "instance"
    head: Literal["linear", "cosine"] = "cosine"
    scale: float = Field(30.0, gt=0)
    loss: LossConfig = LdamLoss(name="ldam")
    weights: WeightsConfig | None = ClassBalancedWeights(name="class_balanced", start=0.8)
    average: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "IndependentConfig":
        check_scale(self.loss, self.head, self.scale)
        return self


class BbnConfig(AnyMethod):
    """BBN: from the images as they come to rare classes, over the epochs, in a network of two `branches`."""

    name: Literal["bbn"]


class ResltConfig(AnyMethod):
    """ResLT: one of the `branches` for all classes and one from each rank of `starts` on, most images first, from 0.

    `alpha` weighs the branches' own cross-entropies, the rest is that of their sum.
    """

    name: Literal["reslt"]
    starts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    alpha: float = Field(0.99, ge=0, le=1)

    @model_validator(mode="after")
    def _starts_ascend(self) -> "ResltConfig":
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"starts: {list(self.starts)} must ascend, every branch is for rarer classes")
        return self


class LfmeConfig(AnyMethod):
    """LFME: a student of experts, the stage's `teachers`, each trained on many-, medium- or few-shot classes alone.

    These are stages of the method classify with `shots`. `scale` belongs to the head `cosine`.
    """

    name: Literal["lfme"]
    sampler: Sampler = "class_aware"
    head: Literal["linear", "cosine"] = "linear"
    scale: float = Field(16.0, gt=0)
    loss: LossConfig = SoftmaxLoss()

    @property
    def teachers_wanted(self) -> range:
        return range(1, 4)

    def why_no_teacher(self, stage: Any) -> str | None:
        if getattr(stage.method, "shots", None) is None:
            return "is no expert: lfme learns from stages of the method classify with shots: many, medium or few"
        return None

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "LfmeConfig":
        check_scale(self.loss, self.head, self.scale)
        return self


class OnTrained(AnyMethod):
    """A method on a model that an earlier stage trained; a `post_hoc` one is fitted without steps."""

    post_hoc: ClassVar[bool] = False


class LwsConfig(OnTrained):
    """Learnable weight scaling: one factor a class on the earlier stage's linear classifier, on class-aware batches."""

    name: Literal["lws"]


class TauNormConfig(OnTrained):
    """The earlier stage's linear classifier, its rows divided by the tau-th power of their length, without bias.

    Where there are validation images tau is chosen on them, of 0, 0.1, ... 2; otherwise it is `tau`.
    """

    post_hoc: ClassVar[bool] = True
    name: Literal["tau_norm"]
    tau: float = Field(1.0, ge=0)


class NcmConfig(OnTrained):
    """The nearest class mean of unit features; with `centre` the training images' mean is taken off them first."""

    post_hoc: ClassVar[bool] = True
    name: Literal["ncm"]
    distance: Literal["euclidean", "cosine"] = "euclidean"
    centre: bool = True


class _TwoClassifiers(OnTrained):
    """With `scaled` the cosines to the class means are mapped, image by image, to the range of the linear logits."""

    scaled: bool = True


class FusionConfig(_TwoClassifiers):
    """A linear classifier and the nearest class mean, put together by a rule.

    `weight` is the linear classifier's part in w_mix; where there are validation images it is chosen on them, of
    0, 0.1, ... 1.
    """

    post_hoc: ClassVar[bool] = True
    name: Literal["fusion"]
    rule: Literal["sum", "softmax_sum", "max", "w_mix"] = "sum"
    weight: float = Field(0.5, ge=0, le=1)


class FusionLlwConfig(_TwoClassifiers):
    """Both classifiers' logits with a learned weight and offset a class, on class-aware batches."""

    name: Literal["fusion_llw"]


class FusionAsmConfig(_TwoClassifiers):
    """A small network says for each image which of the two classifiers to ask.

    It sees the `top` largest linear logits and `hidden` numbers made of the feature.
    """

    name: Literal["fusion_asm"]
    top: int = Field(100, ge=1)
    hidden: int = Field(50, ge=1)


class FusionKtConfig(AnyMethod):
    """A second linear classifier that learns from the nearest class mean while the network trains.

    Where the nearest mean is right, a share of `transfer` of its loss is to answer as that does. The means are taken
    after the share `memory_from` of the stage's epochs, from then on they follow the features at `rate`.
    """

    name: Literal["fusion_kt"]
    scaled: bool = True
    transfer: float = Field(0.8, ge=0, le=1)
    memory_from: float = Field(0.01, ge=0, lt=1)
    rate: float = Field(0.1, gt=0, le=1)


class FslwfConfig(OnTrained):
    """Few-shot learning without forgetting: rare classes' weights are generated from their images.

    Novel are classes with fewer than `novel_below` training images, base the others. A step pretends that the share
    `pretended` of its base classes were novel, with `dropout` on the features. `scale` is the cosines' first one where
    the earlier stage has not learned it, `attention_scale` that of the attention.
    """

    name: Literal["fslwf"]
    novel_below: int = Field(20, ge=1)
    pretended: float = Field(0.64, gt=0, lt=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    scale: float = Field(10.0, gt=0)
    attention_scale: float = Field(30.0, gt=0)


class _ShotRegression(OnTrained):
    """From classifiers of few images to those of many: 1, 2, 4, ... images in so many `levels`.

    Classifiers are fitted on the features by softmax regression with `decay` in `fit_steps` steps. The loss is the
    squared distance of the weights plus `answer_weight` times that of the answers.
    """

    levels: int = Field(5, ge=1, le=16)
    decay: float = Field(1e-3, gt=0)
    fit_steps: int = Field(30, ge=1)
    answer_weight: float = Field(1.0, ge=0)


class ModelRegressionConfig(_ShotRegression):
    """One network of `hidden` numbers a layer maps the weights of any few images to those of many; hinge loss."""

    name: Literal["model_regression"]
    hidden: int = Field(256, ge=1)


class MetaModelNetConfig(_ShotRegression):
    """A chain of residual blocks, each doubling the images the weights are as if of; cross-entropy."""

    name: Literal["meta_model_net"]
    levels: int = Field(7, ge=1, le=16)


OtherClassifierConfig = (
    LwsConfig
    | TauNormConfig
    | NcmConfig
    | FusionConfig
    | FusionLlwConfig
    | FusionAsmConfig
    | FusionKtConfig
    | FslwfConfig
    | ModelRegressionConfig
    | MetaModelNetConfig
)


class ClassifyConfig(AnyMethod):
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

    name: Literal["classify"]
    sampler: Sampler = "instance"
    shots: Literal["many", "medium", "few"] | None = None
    head: Literal["linear", "cosine", "margin"] = "linear"
    scale: float | None = Field(None, gt=0)
    learn_scale: bool = False
    margins: tuple[float, float, float] | None = None
    sample_rate: float = Field(1.0, gt=0, le=1)
    keep_head: bool = False
    loss: LossConfig = SoftmaxLoss()
    weights: WeightsConfig | None = None
    metric_loss: MetricLossConfig | None = None
    mix: MixConfig | None = None
    move_foreground: ForegroundConfig | None = None

    @property
    def teachers_wanted(self) -> range:
        return range(1) if self.move_foreground is None else range(1, 2)

    def why_no_teacher(self, stage: Any) -> str | None:
        is_map_read = stage.embedding == "none" and getattr(stage.method, "head", "linear") == "linear"
        if self.move_foreground is not None and not is_map_read:
            return (
                "has no linear classifier on the averaged map, which move_foreground asks for: give that stage "
                "embedding: none and the method classify with head: linear"
            )
        return None

    @model_validator(mode="after")
    def _blends_have_a_loss(self) -> "ClassifyConfig":
        if self.mix is not None and self.metric_loss is not None:
            raise ValueError("mix: a blend has no one class, which metric_loss asks for; use one of the two")
        if self.mix is not None and self.sample_rate < 1:
            raise ValueError("mix: a blend has two classes, and sample_rate keeps but one of them; drop sample_rate")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_head(self) -> "ClassifyConfig":
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
    def _options_fit_the_head(self) -> "ClassifyConfig":
        if self.scale is not None and self.head == "linear":
            raise ValueError("scale: the head linear has none; it belongs to cosine and margin")
        if self.learn_scale and (self.head != "cosine" or self.loss.name == "ldam"):
            raise ValueError("learn_scale: only the head cosine learns its scale, and not with ldam, which is at one")
        if self.margins is not None and self.head != "margin":
            raise ValueError(f"margins: the head {self.head} has none; they belong to the head margin")
        if self.sample_rate < 1 and self.head == "linear":
            raise ValueError("sample_rate: the head linear trains all identities; below 1 is for cosine and margin")
        return self


class DynamicMetaConfig(AnyMethod):
    """OLTR: dynamic meta-embedding over an identity memory.

    `convention` settles what paper and released code say differently: loss weight 0.1 or 0.01, squash n^2 / (1 + n^2)
    or n / (1 + n), reachability 1 or 10 over the distance, centroids loss on the meta-embedding or on the direct
    feature, its weight on the centroids' gradient or not.
    """

    name: Literal["dynamic_meta"]
    sampler: Sampler = "class_aware"
    convention: Literal["released", "paper"] = "released"
    centroid_update: Literal["released", "tracking"] = "released"
    tracking_rate: float = Field(0.5, gt=0, le=1)
    margin_form: Literal["batch_mean", "per_image"] = "batch_mean"
    margin: float = Field(10.0, ge=0)
    repel_weight: float = Field(0.01, ge=0)
    scale: float = Field(16.0, gt=0)
    min_distance: float = Field(1e-3, gt=0)
    memory: bool = True
    selector: bool = True
    reachability: bool = True


MethodConfig = Annotated[
    ClassifyConfig
    | DynamicMetaConfig
    | BbnConfig
    | ResltConfig
    | LfmeConfig
    | RideConfig
    | RideRouterConfig
    | IndependentConfig
    | OtherClassifierConfig,
    Field(discriminator="name"),
]
