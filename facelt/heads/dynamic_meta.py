"""Dynamic meta-embedding: a direct feature, enriched from the memory, scaled by how reachable it is.

b images of this rank, B of all ranks, W ranks, D feature.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from facelt.distributed.comm import sum_grad_over_ranks
from facelt.distributed.logits import MIN_NORM, ClassifierLogits, GatheredFeatures
from facelt.heads.classifiers import CosineHead, LinearHead
from facelt.heads.memory import IdentityMemory

ConventionName = Literal["paper", "released"]


@dataclass(frozen=True)
class Convention:
    """What the paper and its released code say differently about the head (OLTR, section 3.2 against its code)."""

    reachability_scale: float
    squash_power: int

    def squash(self, vector_BD: torch.Tensor) -> torch.Tensor:
        """Vectors of the same direction and the length n^p / (1 + n^p), below 1."""
        length_B1 = torch.linalg.vector_norm(vector_BD, dim=1, keepdim=True)
        powered_B1 = length_B1.pow(self.squash_power)
        return vector_BD / length_B1.clamp_min(MIN_NORM) * (powered_B1 / (1 + powered_B1))


CONVENTIONS: dict[str, Convention] = {
    "paper": Convention(reachability_scale=1.0, squash_power=2),
    "released": Convention(reachability_scale=10.0, squash_power=1),
}


@dataclass(frozen=True)
class MetaEmbedding:
    """What the head makes of direct features.

    `meta_bD` is squashed: its length is below 1 and grows with the reachability. `vector` is the same before squashing.
    `infused_bD` is selector * memory feature. `reachability_b` is scale / distance to the nearest centroid.
    """

    vector: GatheredFeatures
    meta_bD: torch.Tensor
    infused_bD: torch.Tensor
    reachability_b: torch.Tensor


class DynamicMetaHead(nn.Module):
    """v = reachability * (f + tanh(W_s f + b_s) * (softmax(W_h f + b_h) M)), classified by the cosine of squashed v.

    The parts can be switched off one by one: without memory v = reachability * f, without selector e = 1, without
    reachability its factor is 1.

    Hallucinator, memory and classifier are split by identities. A step moves the features, the read-out, the nearest
    centroids and the meta-embeddings: 4 W b D values forward, 3 W b D and the selector's D (D + 1) back, and a few
    numbers an image; never anything of size C x D.
    """

    def __init__(
        self,
        memory: IdentityMemory,
        dim: int,
        *,
        convention: ConventionName = "released",
        scale: float = 16.0,
        use_memory: bool = True,
        use_selector: bool = True,
        use_reachability: bool = True,
    ) -> None:
        super().__init__()
        num_classes = memory.classes.total
        self.memory = memory
        self.convention = CONVENTIONS[convention]
        self.hallucinator = LinearHead(dim, num_classes) if use_memory else None
        self.selector = nn.Linear(dim, dim) if use_memory and use_selector else None
        self.use_reachability = use_reachability
        self.classifier = CosineHead(dim, num_classes, scale)

    def embed(self, feature: GatheredFeatures) -> MetaEmbedding:
        """The meta-embedding of direct features, with gradients into features and parameters."""
        infused_bD = self._infuse(feature)
        distance_b, _ = self.memory.nearest(feature)
        reachability_b = self.convention.reachability_scale / distance_b
        vector_bD = feature.local_bD + infused_bD
        if self.use_reachability:
            vector_bD = reachability_b[:, None] * vector_bD
        vector = GatheredFeatures.gather(vector_bD, feature.batch_split)
        return MetaEmbedding(vector, self.convention.squash(vector_bD), infused_bD, reachability_b)

    def classify(self, embedding: MetaEmbedding) -> ClassifierLogits:
        """z_k = scale * |squashed v| * cos(v, w_k)."""
        return self.classifier.along(self.convention.squash(embedding.vector.global_BD), embedding.vector.batch_split)

    def forward(self, feature: GatheredFeatures) -> tuple[ClassifierLogits, MetaEmbedding]:
        embedding = self.embed(feature)
        return self.classify(embedding), embedding

    def _infuse(self, feature: GatheredFeatures) -> torch.Tensor:
        if self.hallucinator is None:
            return torch.zeros_like(feature.local_bD)
        memory_bD = self.memory.read(self.hallucinator(feature))
        if self.selector is None:
            return memory_bD
        weight, bias = sum_grad_over_ranks(self.selector.weight), sum_grad_over_ranks(self.selector.bias)
        with torch.autocast(feature.local_bD.device.type, enabled=False):
            return torch.tanh(F.linear(feature.local_bD, weight, bias)) * memory_bD
