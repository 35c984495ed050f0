"""OLTR: dynamic meta-embedding over an identity memory (Liu et al., CVPR 2019, section 3.2).

B images of all ranks, W ranks, D feature.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.registry import SamplerName, register_method
from facelt.config.train import MethodSettings
from facelt.distributed.comm import all_reduce
from facelt.distributed.logits import GatheredFeatures, ShardedLogits
from facelt.heads.dynamic_meta import DynamicMetaHead, HeadVariantName
from facelt.heads.memory import IdentityMemory, UpdateRule
from facelt.losses.centroids import discriminative_centroids_loss
from facelt.methods.base import ClassifierInit, Embeddings, Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network


class DynamicMetaSettings(MethodSettings):
    """Memory, head and centroids loss of OLTR.

    `variant` selects the paper or the released code where they differ (paper / released): weight of the centroids loss
    0.1 / 0.01, applied to the gradient of the centroids / not applied; centroids loss on the meta-embedding / on the
    direct feature; squash n^2 / (1 + n^2) / n / (1 + n); reachability 1 / 10 over the distance.

    `classifier_init: class_means` starts the rows of the cosine classifier at the memory's class means (imprinted
    weights, Qi et al., CVPR 2018). `centroids_weight` replaces the variant's. `direct_loss` is the weight of a second
    cross-entropy, of the direct feature classified by the same rows. `scale` multiplies the cosines.

    `sampler` draws the images of an epoch. `centroid_update` trains the centroids by their loss with a separate
    optimiser (`released`), or moves them by `tracking_rate` towards the features of their identity (`tracking`). In the
    centroids loss features are repelled from other centroids, with the weight `repel_weight`, while their mean squared
    distance is below `margin`: that of the batch, or each image's own, by `margin_form`.

    The distance in the reachability is at least `min_distance`. `memory`, `selector` and `reachability` switch these
    parts of the meta-embedding off.
    """

    sampler: SamplerName = "class_aware"
    variant: HeadVariantName = "released"
    centroid_update: UpdateRule = "released"
    tracking_rate: float = Field(0.5, gt=0, le=1)
    centroids_weight: float | None = Field(None, ge=0)
    margin_form: Literal["batch_mean", "per_image"] = "batch_mean"
    margin: float = Field(10.0, ge=0)
    repel_weight: float = Field(0.01, ge=0)
    scale: float = Field(16.0, gt=0)
    classifier_init: ClassifierInit = "random"
    direct_loss: float = Field(0.0, ge=0)
    min_distance: float = Field(1e-3, gt=0)
    memory: bool = True
    selector: bool = True
    reachability: bool = True

    @property
    def needs_trained_network(self) -> bool:
        return self.classifier_init == "class_means"


@register_method("dynamic_meta", DynamicMetaSettings)
class DynamicMeta(Method):
    """Cross-entropy on the meta-embedding plus the discriminative centroids loss.

    Communication per step and rank, in bytes of the gathered or reduced tensors, with P = W * the largest number of
    images on one rank:

    - 16 P D forward: features, nearest centroids, read-out, meta-embeddings; 12 P D backward, without the nearest;
    - 24 P for labels (32 P with `tracking`); 12 W B for the nearest centroid of each rank; 24 B for maxima, sums and
      target terms forward, 4 B backward; 4 D for the sum of all centroids; 8 W for batch sizes and 16 for the log;
    - 4 D (D + 1) backward for the replicated selector.

    It does not grow with the number of identities.
    """

    kinds = ("direct", "meta", "meta_unit")

    def __init__(
        self, config: DynamicMetaSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.config = config
        self.is_paper = config.variant == "paper"
        self.centroids_weight = config.centroids_weight
        if self.centroids_weight is None:
            self.centroids_weight = 0.1 if self.is_paper else 0.01
        memory = IdentityMemory(
            num_classes,
            network.dim,
            update_rule=config.centroid_update,
            rate=config.tracking_rate,
            min_distance=config.min_distance,
        )
        self.head = DynamicMetaHead(
            memory,
            network.dim,
            variant=config.variant,
            scale=config.scale,
            use_memory=config.memory,
            use_selector=config.selector,
            use_reachability=config.reachability,
        )

    @property
    def memory(self) -> IdentityMemory:
        """The identity centroids."""
        return self.head.memory

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.config.sampler),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        memory = list(self.memory.parameters())
        owned = {id(parameter) for parameter in memory}
        head = [parameter for parameter in self.head.parameters() if id(parameter) not in owned]
        return {"network": list(self.network.parameters()), "head": head, "memory": memory}

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Initialises the hallucinator with the earlier stage's linear classifier, as in the released code."""
        if self.head.hallucinator is None or "head.weight" not in state or "head.bias" not in state:
            return
        weight, bias = self.head.hallucinator.weight, self.head.hallucinator.bias
        classes = self.memory.classes
        if tuple(state["head.weight"].shape) == (classes.total, weight.shape[1]):
            with torch.no_grad():
                weight.copy_(state["head.weight"][classes.first : classes.stop])
                bias.copy_(state["head.bias"][classes.first : classes.stop])

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        self.memory.accumulate(self.gathered_features(batch.image_B3HW), batch.label_B)

    def end_dataset_pass(self) -> None:
        self.memory.finish()
        if self.config.classifier_init == "class_means":
            self.head.classifier.imprint(self.memory.centroid_CD, self.memory.filled_C)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        logits, embedding = self.head(feature)
        cross_entropy = logits.cross_entropy(batch.label_B)
        centroids = discriminative_centroids_loss(
            embedding.vector if self.is_paper else feature,
            self.memory.centroid_CD,
            batch.label_B,
            self.memory.classes,
            margin=self.config.margin,
            repel_weight=self.config.repel_weight,
            margin_form=self.config.margin_form,
            scale_centroid_gradient=self.is_paper,
        )
        loss = cross_entropy + self.centroids_weight * centroids
        parts = {"cross_entropy": cross_entropy.detach(), "centroids_loss": centroids.detach()}
        if self.config.direct_loss:
            direct_loss = self.head.classifier(feature).cross_entropy(batch.label_B)
            loss = loss + self.config.direct_loss * direct_loss
            parts["direct_loss"] = direct_loss.detach()
        norm_b = torch.linalg.vector_norm(feature.local_bD.detach(), dim=1)
        sums = torch.stack([embedding.reachability_b.detach().sum(), norm_b.sum()])
        reachability, feature_norm = all_reduce(sums, dist.ReduceOp.SUM) / feature.batch_split.total
        return StepOutput(
            loss,
            parts
            | {
                "reachability": reachability,
                "feature_norm": feature_norm,
                "target_distance": self.memory.mean_target_distance(feature, batch.label_B),
            },
            after=lambda is_finite: self.memory.update(feature, batch.label_B, is_finite),
        )

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.logits_and_reachability(image_B3HW)[0]

    def logits_and_reachability(self, image_B3HW: torch.Tensor) -> tuple[ShardedLogits, torch.Tensor]:
        logits, embedding = self.head(self.gathered_features(image_B3HW))
        return logits, embedding.reachability_b

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        embedding = self.head.embed(GatheredFeatures.gather(feature_BD))
        return Embeddings(
            {
                "direct": F.normalize(feature_BD, dim=1),
                "meta": embedding.meta_bD,
                "meta_unit": F.normalize(embedding.meta_bD, dim=1),
            },
            embedding.reachability_b,
        )

    def diagnostics(self) -> Mapping[str, float]:
        """Returns the mean norm of the centroids; far below `feature_norm` the memory shrinks or lags.

        With class means as initial rows of the classifier also the number of rows without one, if there are any.
        """
        length_C = torch.linalg.vector_norm(self.memory.centroid_CD.detach(), dim=1)
        filled_C = self.memory.filled_C
        sums = torch.stack([length_C[filled_C].sum(), filled_C.sum().to(length_C.dtype)])
        total, count = all_reduce(sums, dist.ReduceOp.SUM).tolist()
        figures = {"centroid_norm": total / count}
        random_rows = self.memory.classes.total - count
        if self.config.classifier_init == "class_means" and random_rows:
            figures["random_rows"] = random_rows
        return figures
