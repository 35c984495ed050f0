"""What the methods of several experts can be told."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.losses import ClassBalancedWeights, LdamLoss, LossConfig, SoftmaxLoss, WeightsConfig
from facelt.config.method import AnyMethod
from facelt.config.sampler import Sampler
from facelt.config.strict import Strict


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
