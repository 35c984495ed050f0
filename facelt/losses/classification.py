"""What every classification loss is: a term an image, averaged by the class weights of the moment.

B images of all ranks, C classes.

Plain cross-entropy.

B images of all ranks, C classes.

Focal loss over the softmax: images that are classified well count less.

B images of all ranks, C classes.

Focal loss of one sigmoid a class (Lin et al., ICCV 2017), as class-balanced training uses it.

B images of all ranks, C classes.

Label-distribution-aware margins (Cao et al., NeurIPS 2019).

B images of all ranks, C classes.

Softmax equalisation (Tan et al., CVPR 2020): rare classes are spared as the wrong answers of others' images.

B images of all ranks, C classes.

Balanced softmax (Ren et al., NeurIPS 2020): the training set's long tail is part of the softmax.

B images of all ranks, C classes.

Class weights from the training images of each class.

C classes.

Losses, one small file each.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import CLASS_WEIGHTS, LOSSES, register_class_weights, register_loss


class Loss(nn.Module, ABC):
    """A loss of the logits [B, C] of all classes. Losses are built as (counts_C, **options).

    `counts_C` are the training images of each class. What a loss makes of them is a buffer that moves with it to its
    device and is no part of the state.
    """

    # The weighted sum is divided by the number of images, not by the sum of their weights as in F.cross_entropy.
    divides_by_images = False

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__()

    @abstractmethod
    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Each image's loss, [B]; what is drawn is drawn from the generator."""

    def forward(
        self,
        logits_BC: torch.Tensor,
        label_B: torch.Tensor,
        weight_C: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Returns the mean of the terms, a scalar; with class weights their weighted mean (see `divides_by_images`)."""
        term_B = self.terms(logits_BC, label_B, generator)
        if weight_C is None:
            return term_B.mean()
        weight_B = weight_C[label_B]
        weighted_B = weight_B * term_B
        return weighted_B.mean() if self.divides_by_images else weighted_B.sum() / weight_B.sum()


def seen(counts_C: torch.Tensor) -> torch.Tensor:
    """The counts in float64, a class without images counted as the rarest that has some: nothing divides by 0."""
    return counts_C.clamp_min(counts_C[counts_C > 0].min()).double()


@register_loss("softmax", NamedSettings)
class Softmax(Loss):
    """-log p of the own class."""

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BC, label_B, reduction="none")


class FocalSettings(NamedSettings):
    """The exponent `gamma` of the focal losses."""

    gamma: float = Field(1.0, ge=0)


@register_loss("focal", FocalSettings)
class Focal(Loss):
    """-(1 - p)^gamma log p of the own class's probability, as LDAM's repository has it."""

    def __init__(self, counts_C: torch.Tensor, gamma: float = 1.0) -> None:
        super().__init__(counts_C)
        self.gamma = gamma

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        surprise_B = F.cross_entropy(logits_BC, label_B, reduction="none")
        # Where p rounds to 1 a power below 1 has no slope: the clamp's is 0, and so is that of the product.
        missing_B = -torch.expm1(-surprise_B)
        return missing_B.clamp_min(torch.finfo(missing_B.dtype).tiny).pow(self.gamma) * surprise_B


@register_loss("sigmoid_focal", FocalSettings)
class SigmoidFocal(Loss):
    """-(1 - q)^gamma log q summed over the classes, q being what a class's own sigmoid gives the right answer.

    With class weights it is divided by the number of images, as in the code of Cui et al., CVPR 2019.
    """

    divides_by_images = True

    def __init__(self, counts_C: torch.Tensor, gamma: float = 1.0) -> None:
        super().__init__(counts_C)
        self.gamma = gamma

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        # q = sigmoid(a) with the logit turned round where the class is another's.
        right_BC = -logits_BC.scatter(1, label_B[:, None], -logits_BC.gather(1, label_B[:, None]))
        return (torch.exp(-self.gamma * F.softplus(right_BC)) * F.softplus(-right_BC)).sum(dim=1)


class LdamSettings(NamedSettings):
    """Margins of at most `max_margin`, on cosines times `scale`."""

    max_margin: float = Field(0.5, gt=0)
    scale: float = Field(30.0, gt=0)


@register_loss("ldam", LdamSettings)
class Ldam(Loss):
    """Cross-entropy with scale * K / n^(1/4) taken off the own logit, K such that the rarest class has `max_margin`.

    The logits are cosines times `scale`, as the head gives them.
    """

    margin_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__(counts_C)
        share_C = seen(counts_C).pow(-0.25)
        margin_C = scale * max_margin * share_C / share_C.max()
        self.register_buffer("margin_C", margin_C.to(torch.get_default_dtype()), persistent=False)

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        taken_B1 = self.margin_C[label_B].to(logits_BC.dtype)[:, None]
        return F.cross_entropy(logits_BC.scatter_add(1, label_B[:, None], -taken_B1), label_B, reduction="none")


class SeqlSettings(NamedSettings):
    """Rare classes hold less than the fraction `threshold` of the training images; `gamma` is the drop probability."""

    threshold: float = Field(gt=0, lt=1)
    gamma: float = Field(0.9, ge=0, le=1)


# Far below every logit and finite, so that no difference of two of them is NaN.
LEFT_OUT = -1e7


@register_loss("seql", SeqlSettings)
class Seql(Loss):
    """Cross-entropy over a softmax that leaves rare classes out, each image and class drawn for itself.

    Rare are classes with less than the share `threshold` of the training images. They are left out with the
    probability `gamma`, but for the image's own class.
    """

    rare_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor, threshold: float, gamma: float = 0.9) -> None:
        super().__init__(counts_C)
        self.gamma = gamma
        self.register_buffer("rare_C", counts_C < threshold * counts_C.sum(), persistent=False)

    def terms(
        self, logits_BC: torch.Tensor, label_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        drawn_BC = torch.rand(logits_BC.shape, generator=generator, device=logits_BC.device) < self.gamma
        out_BC = (drawn_BC & self.rare_C).scatter(1, label_B[:, None], False)
        return F.cross_entropy(logits_BC.masked_fill(out_BC, LEFT_OUT), label_B, reduction="none")


@register_loss("balanced_softmax", NamedSettings)
class BalancedSoftmax(Loss):
    """Cross-entropy of the logits + log n."""

    log_count_C: torch.Tensor

    def __init__(self, counts_C: torch.Tensor) -> None:
        super().__init__(counts_C)
        self.register_buffer("log_count_C", seen(counts_C).log().to(torch.get_default_dtype()), persistent=False)

    def terms(
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
    """The inverse effective number of images."""

    beta: float = Field(0.9999, ge=0, lt=1)


class CostSensitiveSettings(ClassWeightSettings):
    """(n_min / n)^gamma."""

    gamma: float = Field(1.0, gt=0)


@register_class_weights("class_balanced", ClassBalancedSettings)
def class_balanced(counts_C: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """(1 - beta) / (1 - beta^n), scaled to the sum C (Cui et al., CVPR 2019), [C]."""
    weight_C = (1 - beta) / (1 - beta ** seen(counts_C))
    return (weight_C * len(weight_C) / weight_C.sum()).to(torch.get_default_dtype())


@register_class_weights("cost_sensitive", CostSensitiveSettings)
def cost_sensitive(counts_C: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """(n_min / n)^gamma, [C]."""
    count_C = seen(counts_C)
    return (count_C.min() / count_C).pow(gamma).to(torch.get_default_dtype())


LossConfig = Annotated[NamedSettings, LOSSES.choice()]
ClassWeightsConfig = Annotated[ClassWeightSettings, CLASS_WEIGHTS.choice()]
