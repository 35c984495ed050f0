"""What each method can be told. A stage chooses one by its `name`."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.experts import IndependentConfig, RideConfig, RideRouterConfig
from facelt.config.losses import LossConfig, MetricLossConfig, SoftmaxLoss, WeightsConfig
from facelt.config.method import AnyMethod
from facelt.config.mixing import ForegroundConfig, MixConfig
from facelt.config.on_trained import OtherClassifierConfig
from facelt.config.sampler import Sampler
from facelt.config.shot_groups import BbnConfig, LfmeConfig, ResltConfig

if TYPE_CHECKING:
    from facelt.config.training import StageConfig


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

    def why_no_teacher(self, stage: "StageConfig") -> str | None:
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
