"""Dynamic meta-embedding head of OLTR (CVPR 2019): direct feature, memory feature and reachability.

b images of this rank, B of all ranks, W ranks, D feature, C identities.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from facelt.distributed.comm import sum_grad_over_ranks
from facelt.distributed.logits import NORM_EPS, ClassifierLogits, GatheredFeatures
from facelt.heads.classifiers import CosineHead, LinearHead
from facelt.heads.memory import IdentityMemory

HeadVariantName = Literal["paper", "released"]


@dataclass(frozen=True)
class HeadVariant:
    """Constants in which OLTR's paper (section 3.2) and its released code differ."""

    reachability_scale: float
    squash_power: int

    def squash(self, vector_BD: torch.Tensor) -> torch.Tensor:
        """Returns vectors of the same direction and length n^p / (1 + n^p), which is below 1."""
        norm_B1 = torch.linalg.vector_norm(vector_BD, dim=1, keepdim=True)
        power_B1 = norm_B1.pow(self.squash_power)
        return vector_BD / norm_B1.clamp_min(NORM_EPS) * (power_B1 / (1 + power_B1))


HEAD_VARIANTS: dict[str, HeadVariant] = {
    "paper": HeadVariant(reachability_scale=1.0, squash_power=2),
    "released": HeadVariant(reachability_scale=10.0, squash_power=1),
}


@dataclass(frozen=True)
class MetaEmbedding:
    """Meta-embeddings of direct features.

    `meta_bD` is squashed: its length is below 1 and grows with the reachability. `vector` is the same before squashing.
    `infused_bD` is selector * memory feature. `reachability_b` is scale / distance to the nearest centroid.
    """

    vector: GatheredFeatures
    meta_bD: torch.Tensor
    infused_bD: torch.Tensor
    reachability_b: torch.Tensor


class DynamicMetaHead(nn.Module):
    """v = reachability * (f + tanh(W_s f + b_s) * (softmax(W_h f + b_h) M)), classified by the cosine of squashed v.

    Each part can be switched off: without memory v = reachability * f; without selector or reachability that factor is
    1.

    Hallucinator, memory and classifier are sharded by identity. A step exchanges features, readouts, nearest centroids
    and meta-embeddings: 4 W b D values forward, 3 W b D and the selector's D (D + 1) backward, and a few numbers per
    image; never anything of size C x D.
    """

    def __init__(
        self,
        memory: IdentityMemory,
        dim: int,
        *,
        variant: HeadVariantName = "released",
        scale: float = 16.0,
        use_memory: bool = True,
        use_selector: bool = True,
        use_reachability: bool = True,
    ) -> None:
        super().__init__()
        num_classes = memory.classes.total
        self.memory = memory
        self.variant = HEAD_VARIANTS[variant]
        self.hallucinator = LinearHead(dim, num_classes) if use_memory else None
        self.selector = nn.Linear(dim, dim) if use_memory and use_selector else None
        self.use_reachability = use_reachability
        self.classifier = CosineHead(dim, num_classes, scale)

    def embed(self, feature: GatheredFeatures) -> MetaEmbedding:
        """Returns the meta-embeddings of direct features, with gradients into features and parameters."""
        infused_bD = self._infuse(feature)
        distance_b, _ = self.memory.nearest(feature)
        reachability_b = self.variant.reachability_scale / distance_b
        vector_bD = feature.local_bD + infused_bD
        if self.use_reachability:
            vector_bD = reachability_b[:, None] * vector_bD
        vector = GatheredFeatures.gather(vector_bD, feature.batch_split)
        return MetaEmbedding(vector, self.variant.squash(vector_bD), infused_bD, reachability_b)

    def classify(self, embedding: MetaEmbedding) -> ClassifierLogits:
        """Returns the logits z_k = scale * |squashed v| * cos(v, w_k)."""
        vector = embedding.vector
        return self.classifier.scaled_logits(self.variant.squash(vector.global_BD), vector.batch_split)

    def forward(self, feature: GatheredFeatures) -> tuple[ClassifierLogits, MetaEmbedding]:
        embedding = self.embed(feature)
        return self.classify(embedding), embedding

    def _infuse(self, feature: GatheredFeatures) -> torch.Tensor:
        """Returns selector * memory feature, [b, D]."""
        if self.hallucinator is None:
            return torch.zeros_like(feature.local_bD)
        memory_bD = self.memory.read(self.hallucinator(feature))
        if self.selector is None:
            return memory_bD
        weight, bias = sum_grad_over_ranks(self.selector.weight), sum_grad_over_ranks(self.selector.bias)
        with torch.autocast(feature.local_bD.device.type, enabled=False):
            return torch.tanh(F.linear(feature.local_bD, weight, bias)) * memory_bD
