"""BBN: bilateral-branch network with cumulative learning (Zhou et al., CVPR 2020).

b images of this rank, D feature of a branch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from facelt.config.registry import register_method
from facelt.config.train import MethodSettings
from facelt.distributed.logits import GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.heads.classifiers import LinearHead
from facelt.methods.base import Embeddings, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.multi_expert import truncate_to_shortest
from facelt.models.network import Network


@register_method("bbn", MethodSettings)
class Bbn(Method):
    """Pairs of images from two samplers, mixed by features and by losses.

    The conventional branch sees instance-balanced batches, the rebalancing branch batches of a reversed sampler, in
    which rare classes are more frequent. With a = 1 - ((T - 1) / Tmax)^2 in epoch T, counted from 1, one linear
    classifier reads 2 [a f_c, (1 - a) f_r], and the loss is a CE(y_c) + (1 - a) CE(y_r). Tmax is the number of epochs
    of the stage: a is 1 in the first epoch and never 0. At inference both branches see the same image and the
    classifier reads [f_c, f_r]. Source: the authors' released code.
    """

    is_branched = True

    def __init__(
        self, config: MethodSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        if network.branches != 2:
            raise UserError(
                f"branches: bbn needs 2 branches, not {network.branches}; set branches: {{count: 2, split: last_block}}"
            )
        self.head = LinearHead(self.dim, num_classes)

    @property
    def dim(self) -> int:
        """D of the concatenated features of both branches."""
        return 2 * self.network.dim

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return SamplerSpec("instance"), SamplerSpec("reversed", draw=1)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (image_c, label_c), (image_r, label_r) = truncate_to_shortest(batches)
        share = 1 - context.epoch_fraction**2
        feature_c, feature_r = self.features(image_c, image_r).unbind(dim=1)
        both = torch.cat([2 * share * feature_c, 2 * (1 - share) * feature_r], dim=1)
        logits = self.head(GatheredFeatures.gather(both))
        conventional, rebalanced = logits.cross_entropy(label_c), logits.cross_entropy(label_r)
        return StepOutput(
            share * conventional + (1 - share) * rebalanced,
            {"conventional": conventional.detach(), "rebalanced": rebalanced.detach()},
        )

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW).flatten(1)))

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        return Embeddings({"direct": F.normalize(feature_BD.flatten(1), dim=1)})
