"""Learnable weight scaling (Kang et al., Decoupling Representation and Classifier, ICLR 2020).

Tau-normalisation of a linear classifier (Kang et al., Decoupling Representation and Classifier, ICLR 2020).

D feature, C identities of this rank's range.

The nearest class mean (Kang et al., Decoupling Representation and Classifier, ICLR 2020).

b images of this rank, D feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import SecondStageSettings
from facelt.distributed.logits import NORM_EPS, ClassifierLogits, ClassWeights, GatheredFeatures, ShardedLogits
from facelt.heads.classifiers import LinearHead, WeightScalingHead, load_head
from facelt.heads.ncm import NcmHead
from facelt.methods.base import Method, PostHoc, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network


class LwsSettings(SecondStageSettings):
    """Learnable weight scaling: one factor a class on the earlier stage's linear classifier, on class-aware batches."""


@register_method("lws", LwsSettings)
class Lws(Method):
    """The earlier stage's linear classifier with a learned factor for each class, by cross-entropy.

    In the paper the network's weights are frozen and its running statistics move: the stage says so by `freeze`.
    """

    def __init__(
        self, config: LwsSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = WeightScalingHead(network.dim, num_classes)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("class_aware"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        load_head(self.head.linear, state)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        logits = self.head(GatheredFeatures.gather(self.features(batch.image_B3HW)))
        return StepOutput(logits.cross_entropy(batch.label_B))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW)))


GRID = tuple(step / 10 for step in range(21))


class TauNormSettings(SecondStageSettings):
    """The earlier stage's linear classifier, its rows divided by the tau-th power of their length, without bias.

    Where there are validation images tau is chosen on them, of 0, 0.1, ... 2; otherwise it is `tau`.
    """

    post_hoc: ClassVar[bool] = True
    tau: float = Field(1.0, ge=0)


@register_method("tau_norm", TauNormSettings)
class TauNorm(PostHoc):
    """z_c = w_c f / |w_c|^tau with the rows of the earlier stage's linear head, whose bias is dropped."""

    tau: torch.Tensor

    def __init__(
        self, config: TauNormSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = LinearHead(network.dim, num_classes).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(config.tau))

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no linear head."""
        load_head(self.head, state)

    @property
    def tunable_values(self) -> Sequence[float]:
        return GRID

    def set_value(self, value: float) -> None:
        self.tau.fill_(value)

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        norm_C1 = torch.linalg.vector_norm(self.head.weight, dim=1, keepdim=True).clamp_min(NORM_EPS)
        rows = ClassWeights(self.head.weight / norm_C1.pow(self.tau))
        return ClassifierLogits(feature.global_BD, rows, self.head.classes, feature.batch_split)


class NcmSettings(SecondStageSettings):
    """The nearest class mean of unit features; with `centre` the training images' mean is taken off them first."""

    post_hoc: ClassVar[bool] = True
    distance: Literal["euclidean", "cosine"] = "euclidean"
    centre: bool = True


@register_method("ncm", NcmSettings)
class Ncm(PostHoc):
    """Features less their mean over the training images, at length 1, go to the class whose mean of such is nearest.

    That mean is taken in a first pass, the classes' in a second. Class means are not brought to length 1 again.
    """

    mean_D: torch.Tensor

    def __init__(
        self, config: NcmSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.head = NcmHead(network.dim, num_classes, distance=config.distance)
        self.register_buffer("mean_D", torch.zeros(network.dim))
        self._wants_mean = config.centre
        self._sum_D = torch.zeros(network.dim, dtype=torch.float64)
        self._images = 0

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.head.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        if self._wants_mean:
            self._sum_D = self._sum_D.to(feature.global_BD.device) + feature.global_BD.double().sum(dim=0)
            self._images += feature.batch_split.total
        else:
            self.head.accumulate(self._centred(feature), batch.label_B)

    def end_dataset_pass(self) -> None:
        if self._wants_mean:
            self.mean_D.copy_(self._sum_D / self._images)
            self._wants_mean = False
        else:
            self.head.finish()

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        return self.head(self._centred(GatheredFeatures.gather(self.features(image_B3HW))))

    def _centred(self, feature: GatheredFeatures) -> GatheredFeatures:
        return replace(feature, local_bD=feature.local_bD - self.mean_D, global_BD=feature.global_BD - self.mean_D)
