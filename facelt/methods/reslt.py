"""ResLT: branches for ever rarer classes whose answers add up (Cui et al., TPAMI 2022).

b images of this rank, B of all ranks, K branches, C classes, D feature of a branch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings
from facelt.distributed.logits import ClassWeights, GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.heads.classifiers import LinearHead
from facelt.losses.experts import reslt_loss
from facelt.methods.base import Embeddings, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.multi_expert import by_branch, whole_logits
from facelt.models.network import Network


class ResltSettings(MethodSettings):
    """ResLT: one of the `branches` for all classes and one from each rank of `starts` on, most images first, from 0.

    `alpha` weighs the branches' own cross-entropies, the rest is that of their sum.
    """

    starts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    alpha: float = Field(0.99, ge=0, le=1)

    @model_validator(mode="after")
    def _starts_ascend(self) -> "ResltSettings":
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"starts: {list(self.starts)} must ascend, every branch is for rarer classes")
        return self


@register_method("reslt", ResltSettings)
class Reslt(Method):
    """One linear classifier reads every branch; the model's logits are the sum of what it reads.

    The first branch answers for all classes, each further one for those from a rank of `starts` on, classes ordered by
    their training images, most first; of classes with equally many the one with the lower label comes first. Released
    code, whose order of such classes is left to chance.
    """

    branched = True

    def __init__(
        self, config: ResltSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        if network.branches != 1 + len(config.starts):
            raise UserError(
                f"branches: {network.branches} do not fit starts: {list(config.starts)}; reslt has one branch for all "
                "classes and one for each start"
            )
        if config.starts[-1] >= num_classes:
            raise UserError(f"starts: {config.starts[-1]} is no rank among {num_classes} classes; they begin at 0")
        self.individual = config.alpha
        self.head = LinearHead(network.dim, num_classes)
        member_KC = None if counts_C is None else members(counts_C, config.starts)
        self.register_buffer("member_KC", member_KC, persistent=False)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        branch_KBC = whole_logits([self.head(branch) for branch in by_branch(feature)])
        label_B = feature.batch_split.gather(batch.label_B)
        return StepOutput(reslt_loss(branch_KBC, label_B, self.member_KC, branch_weight=self.individual))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        # The sum of K linear answers is one on the sum of the features, with K times the bias.
        logits = self.head(GatheredFeatures.gather(self.features(image_B3HW).sum(dim=1)))
        return replace(logits, weights=ClassWeights(self.head.weight, self.network.branches * self.head.bias))

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        return Embeddings({"direct": F.normalize(feature_BD.sum(dim=1), dim=1)})


def members(counts_C: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """Which classes each branch answers for, bool [K, C]: all, then those from each start's rank on."""
    order_C = counts_C.argsort(descending=True, stable=True)
    rank_C = order_C.argsort()
    return torch.stack([rank_C >= start for start in (0, *starts)])
