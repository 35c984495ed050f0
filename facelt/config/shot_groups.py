"""What the methods can be told that divide their work by how many images the classes have."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.experts import check_scale
from facelt.config.losses import LossConfig, SoftmaxLoss
from facelt.config.method import AnyMethod
from facelt.config.sampler import Sampler

if TYPE_CHECKING:
    from facelt.config.training import StageConfig


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

    def why_no_teacher(self, stage: "StageConfig") -> str | None:
        if getattr(stage.method, "shots", None) is None:
            return "is no expert: lfme learns from stages of the method classify with shots: many, medium or few"
        return None

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "LfmeConfig":
        check_scale(self.loss, self.head, self.scale)
        return self
