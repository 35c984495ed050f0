"""Dynamic meta-embedding: a direct feature, enriched from the memory, scaled by how reachable it is.

B batch, D feature, C identities.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from facelt.heads.cosine import MIN_NORM, CosineHead, cosine_logits
from facelt.memory import IdentityMemory
from facelt.parallel import ShardedLogits

ConventionName = Literal["paper", "released"]


@dataclass(frozen=True)
class Convention:
    """What the paper and its released code say differently about the head (OLTR, section 3.2 against its code)."""

    reachability_scale: float
    squash_power: int

    def squashed_length(self, length_B1: torch.Tensor) -> torch.Tensor:
        """n^p / (1 + n^p), below 1."""
        powered_B1 = length_B1.pow(self.squash_power)
        return powered_B1 / (1 + powered_B1)


CONVENTIONS: dict[str, Convention] = {
    "paper": Convention(reachability_scale=1.0, squash_power=2),
    "released": Convention(reachability_scale=10.0, squash_power=1),
}


@dataclass(frozen=True)
class MetaEmbedding:
    """What the head makes of direct features.

    `meta_BD` is squashed: its length is below 1 and grows with the reachability. `vector_BD` is the same before
    squashing. `infused_BD` is selector * memory feature. `reachability_B` is scale / distance to the nearest centroid.
    """

    vector_BD: torch.Tensor
    meta_BD: torch.Tensor
    infused_BD: torch.Tensor
    reachability_B: torch.Tensor


class DynamicMetaHead(nn.Module):
    """v = reachability * (f + tanh(W_s f + b_s) * (softmax(W_h f + b_h) M)), classified by the cosine of squashed v.

    The parts can be switched off one by one: without memory v = reachability * f, without selector e = 1, without
    reachability its factor is 1.
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
        self.hallucinator = nn.Linear(dim, len(memory.classes)) if use_memory else None
        self.selector = nn.Linear(dim, dim) if use_memory and use_selector else None
        self.use_reachability = use_reachability
        self.classifier = CosineHead(dim, num_classes, scale)

    def embed(self, feature_BD: torch.Tensor) -> MetaEmbedding:
        """The meta-embedding of direct features [B, D], with gradients into features and parameters."""
        infused_BD = self._infuse(feature_BD)
        distance_B, _ = self.memory.nearest(feature_BD)
        reachability_B = self.convention.reachability_scale / distance_B
        vector_BD = feature_BD + infused_BD
        if self.use_reachability:
            vector_BD = reachability_B[:, None] * vector_BD
        length_B1 = torch.linalg.vector_norm(vector_BD, dim=1, keepdim=True)
        meta_BD = vector_BD / length_B1.clamp_min(MIN_NORM) * self.convention.squashed_length(length_B1)
        return MetaEmbedding(vector_BD, meta_BD, infused_BD, reachability_B)

    def classify(self, embedding: MetaEmbedding) -> ShardedLogits:
        """z_k = scale * |squashed v| * cos(v, w_k)."""
        length_B1 = torch.linalg.vector_norm(embedding.meta_BD, dim=1, keepdim=True)
        cosine_BC = cosine_logits(embedding.vector_BD, self.classifier.weight)
        return ShardedLogits(cosine_BC * (self.classifier.scale * length_B1), self.classifier.classes)

    def forward(self, feature_BD: torch.Tensor) -> tuple[ShardedLogits, MetaEmbedding]:
        embedding = self.embed(feature_BD)
        return self.classify(embedding), embedding

    def _infuse(self, feature_BD: torch.Tensor) -> torch.Tensor:
        if self.hallucinator is None:
            return torch.zeros_like(feature_BD)
        memory_BD = self.memory.read(F.softmax(self.hallucinator(feature_BD), dim=1))
        return memory_BD if self.selector is None else torch.tanh(self.selector(feature_BD)) * memory_BD
