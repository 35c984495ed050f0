"""BBN: from the data as they are to rare classes, in two branches (Zhou et al., CVPR 2020).

b images of this rank, D feature of a branch.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings
from facelt.distributed.logits import GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.heads.classifiers import LinearHead
from facelt.methods.base import Embeddings, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.multi_expert import equal_batches
from facelt.models.network import Network


class BbnSettings(MethodSettings):
    """BBN: from the images as they come to rare classes, over the epochs, in a network of two `branches`."""


@register_method("bbn", BbnSettings)
class Bbn(Method):
    """Image pairs, one of each stream, mixed by features and by losses.

    The conventional branch sees images as they come, the other one classes the more often the rarer they are. With
    a = 1 - ((T - 1) / Tmax)^2 in epoch T, counted from 1, one linear classifier reads 2 [a f_c, (1 - a) f_r] and the
    loss is a CE(y_c) + (1 - a) CE(y_r). Tmax are the epochs of the stage, so a is 1 in the first epoch and never 0.
    A trained model gives the same image to both branches and reads [f_c, f_r] as they are. Released code.
    """

    branched = True

    def __init__(
        self, config: BbnSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        if network.branches != 2:
            raise UserError(
                f"branches: bbn has two, not {network.branches}; give its stage branches: "
                "{count: 2, split: last_block}"
            )
        self.head = LinearHead(self.dim, num_classes)

    @property
    def dim(self) -> int:
        """Both branches' features, one behind the other."""
        return 2 * self.network.dim

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return SamplerSpec("instance"), SamplerSpec("reversed", draw=1)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (image_c, label_c), (image_r, label_r) = equal_batches(batches)
        share = 1 - context.epoch_fraction**2
        feature_b2D = self.features(image_c, image_r)
        weight_21 = feature_b2D.new_tensor([[share], [1 - share]])
        logits = self.head(GatheredFeatures.gather((2 * weight_21 * feature_b2D).flatten(1)))
        conventional, rebalanced = logits.cross_entropy(label_c), logits.cross_entropy(label_r)
        return StepOutput(
            share * conventional + (1 - share) * rebalanced,
            {"conventional": conventional.detach(), "rebalanced": rebalanced.detach()},
        )

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW).flatten(1)))

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        return Embeddings({"direct": F.normalize(feature_BD.flatten(1), dim=1)})
