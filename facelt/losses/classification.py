"""Classification losses on the logits, and class weights from the training images of each class.

B images of all ranks, C classes.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import CLASS_WEIGHTS, LOSSES, register_class_weights, register_loss

# Far below every logit, but finite: differences of two of them are not NaN.
_EXCLUDED_LOGIT = -1e7


class LogitLoss(nn.Module, ABC):
    """Loss of the logits [B, C] of all classes, built as (counts_C, **options).

    `counts_C` are the training images of each class. Tensors derived from them are non-persistent buffers: they move
    with the module and are not saved.
    """

    # The weighted sum is divided by the number of images, not by the sum of their weights as in F.cross_entropy.
    divides_by_images = False

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__()

    @abstractmethod
    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Returns the loss of each image, [B]. Random losses draw from the generator."""

    def forward(
        self,
        logits_BC: torch.Tensor,
        label_B: torch.Tensor,
        weight_C: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Returns the mean loss, a scalar; with class weights the weighted mean (see `divides_by_images`)."""
        loss_B = self.per_image(logits_BC, label_B, generator)
        if weight_C is None:
            return loss_B.mean()
        weight_B = weight_C[label_B]
        weighted_B = weight_B * loss_B
        return weighted_B.mean() if self.divides_by_images else weighted_B.sum() / weight_B.sum()


def _positive_counts(counts_C: torch.Tensor) -> torch.Tensor:
    """Returns the counts in float64; a class without images counts as the rarest one with images, to divide by it."""
    return counts_C.clamp_min(counts_C[counts_C > 0].min()).double()


def log_prior(counts_C: torch.Tensor) -> torch.Tensor:
    """Returns log(n / N) of each class, N all training images, [C]; a class without images counts as the rarest one."""
    return (_positive_counts(counts_C) / counts_C.sum()).log().to(torch.get_default_dtype())


@register_loss("softmax", NamedSettings)
class SoftmaxLoss(LogitLoss):
    """Softmax cross-entropy: -log p of the target class."""

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BC, label_B, reduction="none")


class FocalSettings(NamedSettings):
    """The exponent `gamma` of the focal losses."""

    gamma: float = Field(1.0, ge=0)


class _FocalBase(LogitLoss):
    """Base class of the focal losses: keeps the exponent `gamma`."""

    def __init__(self, counts_C: torch.Tensor, gamma: float = 1.0) -> None:
        super().__init__(counts_C)
        self.gamma = gamma


@register_loss("focal", FocalSettings)
class FocalLoss(_FocalBase):
    """Softmax focal loss: -(1 - p)^gamma log p of the target class, as in LDAM's code."""

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        log_loss_B = F.cross_entropy(logits_BC, label_B, reduction="none")
        # If p rounds to 1, a power below 1 has an infinite derivative; that of the clamp, and so of the product, is 0.
        error_B = -torch.expm1(-log_loss_B)
        return error_B.clamp_min(torch.finfo(error_B.dtype).tiny).pow(self.gamma) * log_loss_B


@register_loss("sigmoid_focal", FocalSettings)
class SigmoidFocalLoss(_FocalBase):
    """Sigmoid focal loss (Lin et al., ICCV 2017): the sum over the classes of -(1 - q)^gamma log q.

    q is the sigmoid's probability of the right answer for a class. With class weights the sum is divided by the number
    of images, as in the code of the class-balanced loss (Cui et al., CVPR 2019).
    """

    divides_by_images = True

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        # q = sigmoid(a), with a = z for the target class and -z for the others.
        signed_BC = -logits_BC.scatter(1, label_B[:, None], -logits_BC.gather(1, label_B[:, None]))
        return (torch.exp(-self.gamma * F.softplus(signed_BC)) * F.softplus(-signed_BC)).sum(dim=1)


class LdamSettings(NamedSettings):
    """Margins of at most `max_margin`, on cosines times `scale`."""

    max_margin: float = Field(0.5, gt=0)
    scale: float = Field(30.0, gt=0)


@register_loss("ldam", LdamSettings)
class LdamLoss(LogitLoss):
    """Label-distribution-aware margins (Cao et al., NeurIPS 2019).

    Cross-entropy after subtracting scale * K / n^(1/4) from the target logit, with K such that the rarest class has
    `max_margin`. The head returns cosines times `scale` as logits.
    """

    margin_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__(counts_C)
        relative_C = _positive_counts(counts_C).pow(-0.25)
        margin_C = scale * max_margin * relative_C / relative_C.max()
        self.register_buffer("margin_C", margin_C.to(torch.get_default_dtype()), persistent=False)

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        margin_B1 = self.margin_C[label_B].to(logits_BC.dtype)[:, None]
        return F.cross_entropy(logits_BC.scatter_add(1, label_B[:, None], -margin_B1), label_B, reduction="none")


class SeqlSettings(NamedSettings):
    """Rare classes hold less than the fraction `threshold` of the training images; `gamma` is the drop probability."""

    threshold: float = Field(gt=0, lt=1)
    gamma: float = Field(0.9, ge=0, le=1)


@register_loss("seql", SeqlSettings)
class SeqlLoss(LogitLoss):
    """Softmax equalisation loss (Tan et al., CVPR 2020): cross-entropy without some of the rare classes.

    Rare classes have less than the fraction `threshold` of the training images. Each is excluded from an image's
    softmax with probability `gamma`, independently, unless it is the target class.
    """

    rare_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, threshold: float, gamma: float = 0.9) -> None:
        super().__init__(counts_C)
        self.gamma = gamma
        self.register_buffer("rare_C", counts_C < threshold * counts_C.sum(), persistent=False)

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        is_drawn_BC = torch.rand(logits_BC.shape, generator=generator, device=logits_BC.device) < self.gamma
        is_excluded_BC = (is_drawn_BC & self.rare_C).scatter(1, label_B[:, None], False)
        return F.cross_entropy(logits_BC.masked_fill(is_excluded_BC, _EXCLUDED_LOGIT), label_B, reduction="none")


@register_loss("balanced_softmax", NamedSettings)
class BalancedSoftmaxLoss(LogitLoss):
    """Balanced softmax (Ren et al., NeurIPS 2020): cross-entropy of the logits + log n."""

    log_count_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__(counts_C)
        log_count_C = _positive_counts(counts_C).log()
        self.register_buffer("log_count_C", log_count_C.to(torch.get_default_dtype()), persistent=False)

    def per_image(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BC + self.log_count_C, label_B, reduction="none")


class ClassWeightSettings(NamedSettings):
    """Class weights from the fraction `start` of the stage's epochs on: deferred re-weighting if that is above 0."""

    start: float = Field(0.0, ge=0, lt=1)

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", "start"})


class ClassBalancedSettings(ClassWeightSettings):
    """The inverse effective number of images, (1 - `beta`) / (1 - `beta`^n) for a class of n."""

    beta: float = Field(0.9999, ge=0, lt=1)


class CostSensitiveSettings(ClassWeightSettings):
    """(n_min / n)^`gamma` for a class of n images, n_min those of the rarest class."""

    gamma: float = Field(1.0, gt=0)


@register_class_weights("class_balanced", ClassBalancedSettings)
def class_balanced_weights(counts_C: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """Returns (1 - beta) / (1 - beta^n), scaled to the sum C, [C] (Cui et al., CVPR 2019)."""
    weight_C = (1 - beta) / (1 - beta ** _positive_counts(counts_C))
    return (weight_C * len(weight_C) / weight_C.sum()).to(torch.get_default_dtype())


@register_class_weights("cost_sensitive", CostSensitiveSettings)
def cost_sensitive_weights(counts_C: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """Returns (n_min / n)^gamma, [C]."""
    count_C = _positive_counts(counts_C)
    return (count_C.min() / count_C).pow(gamma).to(torch.get_default_dtype())


LossConfig = Annotated[NamedSettings, LOSSES.choice()]
ClassWeightsConfig = Annotated[ClassWeightSettings, CLASS_WEIGHTS.choice()]
