"""Classifiers on trained features: learnable weight scaling, tau-normalisation, logit adjustment, nearest class mean.

Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020; of logit
adjustment Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021.

D feature, C identities of this rank's range, A all identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from facelt.config.registry import register_method
from facelt.config.train import SecondStageSettings
from facelt.distributed.logits import NORM_EPS, ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.heads.classifiers import LinearHead, WeightScalingHead, load_head
from facelt.heads.ncm import NcmHead
from facelt.losses.classification import log_prior
from facelt.methods.base import Method, PostHocMethod, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network


@register_method("lws", SecondStageSettings)
class Lws(Method):
    """Learnable weight scaling: the earlier stage's linear classifier with one learned factor per class.

    It trains on class-aware batches by cross-entropy. The paper freezes the weights of the network but updates its
    running statistics, which is `freeze: [backbone, ...]` in the stage.
    """

    def __init__(
        self, config: SecondStageSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = WeightScalingHead(network.dim, num_classes)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("class_aware"),)

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the linear head. Raises UserError if the earlier stage has none."""
        load_head(self.head.linear, state)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        logits = self.head(self.gathered_features(batch.image_B3HW))
        return StepOutput(logits.cross_entropy(batch.label_B))


_TAUS = tuple(step / 10 for step in range(21))


class TauNormSettings(SecondStageSettings):
    """`tau` is the exponent of the norms; if there are validation images, it is tuned on them over 0, 0.1, ... 2."""

    post_hoc: ClassVar[bool] = True
    tau: float = Field(1.0, ge=0)


@register_method("tau_norm", TauNormSettings)
class TauNorm(PostHocMethod):
    """z_c = w_c f / |w_c|^tau with the weights w of the earlier stage's linear head; its bias is dropped."""

    tau: torch.Tensor

    def __init__(
        self, config: TauNormSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(config.tau))

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the linear head. Raises UserError if the earlier stage has none."""
        load_head(self.head, state)

    @property
    def tunable_values(self) -> Sequence[float]:
        return _TAUS

    def set_value(self, value: float) -> None:
        self.tau.fill_(value)

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = self.gathered_features(image_B3HW)
        norm_C1 = torch.linalg.vector_norm(self.head.weight, dim=1, keepdim=True).clamp_min(NORM_EPS)
        weights = ClassWeights(self.head.weight / norm_C1.pow(self.tau))
        return ClassifierLogits(feature.global_BD, weights, self.head.classes, feature.batch_split)


class LogitAdjustmentSettings(SecondStageSettings):
    """`tau` weighs the log prior; with `candidates` it is the one that is best on the validation images, if there are.

    The accuracy on the validation images chooses, so they must have as many images of each class as the test does.
    """

    post_hoc: ClassVar[bool] = True
    tau: float = Field(1.0, ge=0)
    candidates: tuple[Annotated[float, Field(ge=0)], ...] = ()


@register_method("logit_adjustment", LogitAdjustmentSettings)
class LogitAdjustment(PostHocMethod):
    """z_c = w_c f + b_c - tau log(n_c / N) with the linear head of the earlier stage: post-hoc logit adjustment.

    In the loss instead, logit adjustment is `prior_weight` of the method `classify`.
    """

    tau: torch.Tensor
    log_prior_A: torch.Tensor

    def __init__(
        self,
        config: LogitAdjustmentSettings,
        network: Network,
        num_classes: int,
        counts_C: torch.Tensor | None = None,
    ) -> None:
        super().__init__(network)
        self.head = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(config.tau))
        # Without counts they are those of a saved model.
        self.register_buffer("log_prior_A", torch.zeros(num_classes) if counts_C is None else log_prior(counts_C))
        self.candidates = config.candidates

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads the linear head. Raises UserError if the earlier stage has none."""
        load_head(self.head, state)

    @property
    def tunable_values(self) -> Sequence[float]:
        return self.candidates

    def set_value(self, value: float) -> None:
        self.tau.fill_(value)

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        classes = self.head.classes
        log_prior_C = self.log_prior_A[classes.first : classes.stop]
        logits = self.head(self.gathered_features(image_B3HW))
        return replace(logits, weights=ClassWeights(self.head.weight, self.head.bias - self.tau * log_prior_C))


class NcmSettings(SecondStageSettings):
    """The `distance` to the class means; with `centre` the mean of the training features is subtracted first."""

    post_hoc: ClassVar[bool] = True
    distance: Literal["euclidean", "cosine"] = "euclidean"
    centre: bool = True


@register_method("ncm", NcmSettings)
class Ncm(PostHocMethod):
    """Nearest class mean of centred features at unit length.

    The first pass computes the mean of the training features, the second the class means, which are not normalised.
    """

    mean_D: torch.Tensor

    def __init__(
        self, config: NcmSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = NcmHead(network.dim, num_classes, distance=config.distance)
        self.register_buffer("mean_D", torch.zeros(network.dim))
        self._needs_mean = config.centre
        self._sum_D = torch.zeros(network.dim, dtype=torch.float64)
        self._images = 0

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.head.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        feature = self.gathered_features(batch.image_B3HW)
        if self._needs_mean:
            sum_D = feature.global_BD.double().sum(dim=0)
            self._sum_D = self._sum_D.to(sum_D.device, non_blocking=True) + sum_D
            self._images += feature.batch_split.total
        else:
            self.head.accumulate(self._centred(feature), batch.label_B)

    def end_dataset_pass(self) -> None:
        if self._needs_mean:
            self.mean_D.copy_(self._sum_D / self._images)
            self._needs_mean = False
        else:
            self.head.finish()

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        return self.head(self._centred(self.gathered_features(image_B3HW)))

    def _centred(self, feature: GatheredFeatures) -> GatheredFeatures:
        return replace(feature, local_bD=feature.local_bD - self.mean_D, global_BD=feature.global_BD - self.mean_D)
