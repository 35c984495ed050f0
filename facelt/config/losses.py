"""What the losses, class weights and metric-learning losses can be told. A method chooses each by its `name`.

What can be told of images that are made while training: blends of two, and moved foregrounds.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from facelt.config.base import Strict


class LossPart(Strict):
    """A part of a method's loss: `options` are what it is built with."""

    @property
    def options(self) -> dict[str, Any]:
        """The values that belong to the part itself."""
        return self.model_dump(exclude={"name", "start", "weight"})


class SoftmaxLoss(LossPart):
    """Cross-entropy."""

    name: Literal["softmax"] = "softmax"


class FocalLoss(LossPart):
    """Focal loss over the softmax."""

    name: Literal["focal"]
    gamma: float = Field(1.0, ge=0)


class SigmoidFocalLoss(LossPart):
    """Focal loss of one sigmoid a class; the head's bias starts such that every class is as likely as one of all."""

    name: Literal["sigmoid_focal"]
    gamma: float = Field(1.0, ge=0)


class LdamLoss(LossPart):
    """Label-distribution-aware margins, on cosines times `scale`."""

    name: Literal["ldam"]
    max_margin: float = Field(0.5, gt=0)
    scale: float = Field(30.0, gt=0)


class SeqlLoss(LossPart):
    """Softmax equalisation. Rare are classes with less than the share `threshold` of the training images."""

    name: Literal["seql"]
    threshold: float = Field(gt=0, lt=1)
    gamma: float = Field(0.9, ge=0, le=1)


class BalancedSoftmaxLoss(LossPart):
    """Balanced softmax."""

    name: Literal["balanced_softmax"]


LossConfig = Annotated[
    SoftmaxLoss | FocalLoss | SigmoidFocalLoss | LdamLoss | SeqlLoss | BalancedSoftmaxLoss,
    Field(discriminator="name"),
]


class _Weights(LossPart):
    """Class weights from the share `start` of the stage's epochs on: deferred re-weighting where that is above 0."""

    start: float = Field(0.0, ge=0, lt=1)


class ClassBalancedWeights(_Weights):
    """The inverse effective number of images."""

    name: Literal["class_balanced"]
    beta: float = Field(0.9999, ge=0, lt=1)


class CostSensitiveWeights(_Weights):
    """(n_min / n)^gamma."""

    name: Literal["cost_sensitive"]
    gamma: float = Field(1.0, gt=0)


WeightsConfig = Annotated[ClassBalancedWeights | CostSensitiveWeights, Field(discriminator="name")]


class _MetricLoss(LossPart):
    """A loss on the features, times `weight`, beside the one on the logits."""

    weight: float = Field(1.0, gt=0)


class LiftedLoss(_MetricLoss):
    """Lifted structure."""

    name: Literal["lifted"]
    margin: float = Field(1.0, ge=0)


class RangeLoss(_MetricLoss):
    """The widest pairs of a class, plus `inter_weight` times what the two closest classes lack of the `margin`."""

    name: Literal["range"]
    margin: float = Field(5.0, ge=0)
    inter_weight: float = Field(1.0, ge=0)


MetricLossConfig = Annotated[LiftedLoss | RangeLoss, Field(discriminator="name")]


class _Mix(Strict):
    """Steps on blends of two images; the first one's share is drawn from Beta(alpha, alpha)."""

    alpha: float = Field(1.0, gt=0)

    @property
    def options(self) -> dict[str, Any]:
        """What a way to mix is built with."""
        return self.model_dump(exclude={"name"})


class MixupConfig(_Mix):
    """The images are blended, or their features: manifold mixup."""

    name: Literal["input", "manifold"]


class RemixConfig(_Mix):
    """The rarer class's label alone where the other class has `kappa` times the images and less than `tau` of it."""

    name: Literal["remix"]
    kappa: float = Field(3.0, gt=1)
    tau: float = Field(0.5, ge=0, le=1)


MixConfig = Annotated[MixupConfig | RemixConfig, Field(discriminator="name")]


class ForegroundConfig(Strict):
    """Images of rare classes with their foreground moved, as many as bring every class to one size.

    With a `threshold` classes of as many training images have none, and no class more than that.
    """

    threshold: int | None = Field(None, ge=1)
