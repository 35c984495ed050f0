"""ResLT: residual branches for successively rarer classes (Cui et al., TPAMI 2022).

b images of this rank, B of all ranks, K branches, C classes, D feature of a branch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings
from facelt.distributed.logits import ClassWeights, GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.heads.classifiers import LinearHead
from facelt.losses.experts import reslt_loss
from facelt.methods.base import Embeddings, Method, StepContext, StepOutput, TrainBatch
from facelt.methods.multi_expert import split_branches, stack_full_logits
from facelt.models.network import Network


class ResltSettings(MethodSettings):
    """Classes are ranked by training images, most first: one branch covers all, one the ranks from each of `starts` on.

    `alpha` weights the cross-entropies of the branches, 1 - alpha that of their sum. Ranks start at 0.
    """

    starts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    alpha: float = Field(0.99, ge=0, le=1)

    @model_validator(mode="after")
    def _starts_ascend(self) -> "ResltSettings":
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"starts: {list(self.starts)} must be in ascending order")
        return self


@register_method("reslt", ResltSettings)
class Reslt(Method):
    """One linear classifier for all branches; the logits of the model are the sum over the branches.

    Classes with equally many training images are ranked by label; their order is random in the released code.
    """

    is_branched = True

    def __init__(
        self, config: ResltSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        if network.branches != 1 + len(config.starts):
            raise UserError(
                f"branches: {network.branches} does not fit starts: {list(config.starts)}; reslt needs one branch for "
                "all classes and one per start"
            )
        if config.starts[-1] >= num_classes:
            raise UserError(f"starts: {config.starts[-1]} is not a rank of {num_classes} classes; ranks start at 0")
        self.branch_weight = config.alpha
        self.head = LinearHead(network.dim, num_classes)
        member_KC = None if counts_C is None else _branch_classes(counts_C, config.starts)
        self.register_buffer("member_KC", member_KC, persistent=False)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        branch_KBC = stack_full_logits([self.head(branch) for branch in split_branches(feature)])
        label_B = feature.batch_split.gather(batch.label_B)
        return StepOutput(reslt_loss(branch_KBC, label_B, self.member_KC, branch_weight=self.branch_weight))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        # The sum of the logits of K branches equals the logits of the summed features with K times the bias.
        logits = self.head(GatheredFeatures.gather(self.features(image_B3HW).sum(dim=1)))
        return replace(logits, weights=ClassWeights(self.head.weight, self.network.branches * self.head.bias))

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        return Embeddings({"direct": F.normalize(feature_BD.sum(dim=1), dim=1)})


def _branch_classes(counts_C: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """Returns the classes of each branch, bool [K, C]: all, then those from the rank of each start on."""
    order_C = counts_C.argsort(descending=True, stable=True)
    rank_C = order_C.argsort()
    return torch.stack([rank_C >= start for start in (0, *starts)])
