"""What methods can be told that put other classifiers on a feature, most of them on that of an earlier stage."""

from typing import ClassVar, Literal

from pydantic import Field

from facelt.config.method import AnyMethod


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
