"""Margins on the cosines of a classifier: ArcFace, CosFace, AdaFace, MV-Softmax and Circle.

B images of all ranks, N classes of a block of columns.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from facelt.config.base import Fraction, NamedSettings
from facelt.config.registry import register_margin

# The derivative of acos is infinite at 1 and -1.
_COSINE_LIMIT = 1 - 1e-6
# AdaFace's released code clips the norms, and adds to their standard deviation so as not to divide by zero.
_NORM_LIMITS = (1e-3, 100.0)
_STD_OFFSET = 1e-3


class Margin(nn.Module, ABC):
    """A margin in the training loss of a classifier.

    Called as `margin(cosine_B, quality_B)`, it returns for the cosines of images to their own classes what takes their
    place in the softmax, [B], with a gradient; the head multiplies by its scale, by default `scale`.
    """

    scale: ClassVar[float] = 64.0
    # The margin changes the cosines to other classes as well, by `negatives`.
    changes_negatives: ClassVar[bool] = False

    @abstractmethod
    def forward(self, cosine_B: torch.Tensor, quality_B: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the target cosines with the margin, [B]."""

    def negatives(self, cosine_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
        """Returns for the cosines to other classes what takes their place, [B, N], element by element.

        `target_B1` are the target cosines with the margin, which get no gradient from here.
        """
        return cosine_BN

    def quality(self, norm_B: torch.Tensor) -> torch.Tensor:
        """Returns the quality of the global batch's images by the norms of their features, -1 to 1, without gradient.

        It is 0 for a margin that is the same for all images.
        """
        return torch.zeros_like(norm_B)

    def update(self, norm_B: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Updates the running statistics by the norms of a batch, if the margin has any and the step is finite."""


class CombinedMarginSettings(NamedSettings):
    """cos(m1 theta + m2) - m3: the factor `angular` m1, the angle `additive` m2 in radians, and `cosine` m3."""

    angular: float = Field(1.0, ge=1, le=4)
    additive: float = Field(0.0, ge=0, le=1.5)
    cosine: float = Field(0.0, ge=0, le=1)


@register_margin("combined", CombinedMarginSettings)
class CombinedMargin(Margin):
    """cos(angular * theta + additive) - cosine, the combined margin of ArcFace (CVPR 2019, equation 4).

    (1, 0.5, 0) is ArcFace, (1, 0, 0.4) CosFace. Beyond pi the cosine of the enlarged angle would rise again and reward
    a worse feature. There the target is cos(theta) minus a constant: additive * sin(additive) as in ArcFace's code, or
    what keeps the target decreasing for any `angular`, whichever is larger.
    """

    def __init__(self, angular: float = 1.0, additive: float = 0.0, cosine: float = 0.0) -> None:
        super().__init__()
        self.angular, self.additive, self.cosine = angular, additive, cosine

    def forward(self, cosine_B: torch.Tensor, quality_B: torch.Tensor | None = None) -> torch.Tensor:
        if self.angular == 1 and self.additive == 0:
            return cosine_B - self.cosine
        theta_B = cosine_B.clamp(-_COSINE_LIMIT, _COSINE_LIMIT).acos()
        enlarged_B = self.angular * theta_B + self.additive
        straight_angle = (math.pi - self.additive) / self.angular
        penalty = max(self.additive * math.sin(self.additive), 1 + math.cos(straight_angle))
        return torch.where(enlarged_B <= math.pi, enlarged_B.cos(), cosine_B - penalty) - self.cosine


class ArcFaceSettings(NamedSettings):
    """cos(theta + `m`), an angle in radians."""

    m: float = Field(0.5, ge=0, le=1.5)


@register_margin("arcface", ArcFaceSettings)
def arcface(m: float = 0.5) -> CombinedMargin:
    """Returns ArcFace's additive angular margin (Deng et al., CVPR 2019)."""
    return CombinedMargin(additive=m)


class CosFaceSettings(NamedSettings):
    """cos(theta) - `m`."""

    m: Fraction = 0.4


@register_margin("cosface", CosFaceSettings)
def cosface(m: float = 0.4) -> CombinedMargin:
    """Returns CosFace's additive cosine margin (Wang et al., CVPR 2018)."""
    return CombinedMargin(cosine=m)


class AdaFaceSettings(NamedSettings):
    """cos(theta - `m` q) - (`m` q + `m`) with the quality q = `h` (norm - mean) / std, clipped to -1..1.

    Mean and standard deviation of the feature norms are moving averages that keep the fraction `ema` at each step.
    """

    m: Fraction = 0.4
    h: float = Field(0.333, ge=0)
    ema: float = Field(0.99, ge=0, lt=1)


@register_margin("adaface", AdaFaceSettings)
class AdaFace(Margin):
    """AdaFace (Kim et al., CVPR 2022): the margin adapts to the norm of the feature.

    The norm stands for the quality of the image: long features get a margin that grows with the angle, short ones one
    that shrinks with it. The enlarged angle is clipped to 0..pi, the norms to 0.001..100, as in the released code.

    A step uses the moving averages with its batch already in them; they are stored by `update`, after the step. Every
    rank computes them from the norms of the global batch (released code: of one process). They start at 20 and 100.
    """

    norm_mean: torch.Tensor
    norm_std: torch.Tensor

    def __init__(self, m: float = 0.4, h: float = 0.333, ema: float = 0.99) -> None:
        super().__init__()
        self.m, self.h, self.ema = m, h, ema
        self.register_buffer("norm_mean", torch.tensor([20.0]))
        self.register_buffer("norm_std", torch.tensor([100.0]))

    def forward(self, cosine_B: torch.Tensor, quality_B: torch.Tensor) -> torch.Tensor:
        theta_B = cosine_B.clamp(-_COSINE_LIMIT, _COSINE_LIMIT).acos()
        return (theta_B - self.m * quality_B).clamp(0, math.pi).cos() - self.m * (quality_B + 1)

    @torch.no_grad()
    def quality(self, norm_B: torch.Tensor) -> torch.Tensor:
        mean, std = self._averages(norm_B)
        return (self.h * (norm_B.clamp(*_NORM_LIMITS) - mean) / (std + _STD_OFFSET)).clamp(-1, 1)

    @torch.no_grad()
    def update(self, norm_B: torch.Tensor, is_finite: torch.Tensor) -> None:
        mean, std = self._averages(norm_B)
        torch.where(is_finite, mean, self.norm_mean, out=self.norm_mean)
        torch.where(is_finite, std, self.norm_std, out=self.norm_std)

    def _averages(self, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the moving averages with this batch in them. A single image has the standard deviation 0."""
        clipped_B = norm_B.clamp(*_NORM_LIMITS)
        std, mean = torch.std_mean(clipped_B, correction=min(1, len(clipped_B) - 1), keepdim=True)
        return self.norm_mean.lerp(mean, 1 - self.ema), self.norm_std.lerp(std, 1 - self.ema)


class MvSoftmaxSettings(NamedSettings):
    """The margin `m` of CosFace (`form: am`, default 0.35) or of ArcFace (`arc`, 0.5).

    A class with a larger cosine than the target with its margin gets cos + `t` (`reweight: fixed`) or (1 + t) cos + t
    (`adaptive`).
    """

    form: Literal["am", "arc"] = "am"
    m: float | None = Field(None, ge=0, le=1.5)
    reweight: Literal["fixed", "adaptive"] = "adaptive"
    t: Fraction = 0.2


@register_margin("mv_softmax", MvSoftmaxSettings)
class MvSoftmax(Margin):
    """MV-Softmax (Wang et al., AAAI 2020): classes that an image is mistaken for weigh more in the softmax.

    These are the classes k with cos_k above the target f with its margin. The factor of e^(s cos_k) is e^(s t) (fixed)
    or e^(s t (cos_k + 1)) (adaptive). No gradient flows through the choice of these classes.
    """

    scale = 32.0
    changes_negatives = True

    def __init__(
        self,
        form: Literal["am", "arc"] = "am",
        m: float | None = None,
        reweight: Literal["fixed", "adaptive"] = "adaptive",
        t: float = 0.2,
    ) -> None:
        super().__init__()
        if form == "am":
            self.target = cosface(0.35 if m is None else m)
        else:
            self.target = arcface(0.5 if m is None else m)
        self.factor = 1 + t if reweight == "adaptive" else 1.0
        self.t = t

    def forward(self, cosine_B: torch.Tensor, quality_B: torch.Tensor | None = None) -> torch.Tensor:
        return self.target(cosine_B)

    def negatives(self, cosine_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
        return torch.where(cosine_BN > target_B1, self.factor * cosine_BN + self.t, cosine_BN)


class CircleSettings(NamedSettings):
    """The relaxation `m`: cosines aim at more than 1 - m to the own class and less than m to the others."""

    m: float = Field(0.25, ge=0, lt=1)


@register_margin("circle", CircleSettings)
class Circle(Margin):
    """Circle loss with class labels (Sun et al., CVPR 2020).

    A target cosine becomes a (cos - (1 - m)) with a = [1 + m - cos]+, another a (cos - m) with a = [cos + m]+: the
    further a cosine is from its optimum, the larger its gradient. No gradient flows through the weights a. The paper's
    gamma is the head's `scale`.
    """

    scale = 256.0
    changes_negatives = True

    def __init__(self, m: float = 0.25) -> None:
        super().__init__()
        self.m = m

    def forward(self, cosine_B: torch.Tensor, quality_B: torch.Tensor | None = None) -> torch.Tensor:
        return (1 + self.m - cosine_B).clamp_min(0).detach() * (cosine_B - (1 - self.m))

    def negatives(self, cosine_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
        return (cosine_BN + self.m).clamp_min(0).detach() * (cosine_BN - self.m)
