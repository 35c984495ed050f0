"""What the methods of several experts share: a network of branches, a head for each, and the mean of what they say.

b images of this rank, B of all ranks, K experts, C classes, D feature.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.heads import HEADS
from facelt.methods.base import Embeddings, Inputs, Method, Stream
from facelt.models.network import Network
from facelt.parallel import MIN_NORM, ProductLogits, Rows, ShardedLogits, SharedFeature


class Experts(Method):
    """K experts: a branch of the network and a classifier each; together they answer the mean of their logits.

    Their embedding is the experts' directions side by side, K D long and of unit length, so that the product of two
    embeddings is the mean of the experts' cosines.
    """

    branched = True

    def __init__(self, network: Network, num_classes: int, sampler: str, head: str, **options: float) -> None:
        """`head` is a row of HEADS, built with the options."""
        super().__init__(network)
        self.sampler = sampler
        self.heads = nn.ModuleList(HEADS[head](network.dim, num_classes, **options) for _ in range(network.branches))

    @property
    def dim(self) -> int:
        return self.network.branches * self.network.dim

    def streams(self) -> Sequence[Stream]:
        return (Stream(self.sampler),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.heads.parameters())}

    def shared_features(self, *image_B3HW: torch.Tensor) -> SharedFeature:
        """The branches' features [b,K,D], of one batch of images or of K equal ones, gathered once for all experts."""
        return SharedFeature.of(self.features(*image_B3HW))

    def experts_of(self, feature: SharedFeature) -> list[ProductLogits]:
        """Each expert's logits of its own branch's features."""
        return [head(branch) for head, branch in zip(self.heads, by_branch(feature), strict=True)]

    def together(self, feature: SharedFeature, experts: Sequence[ProductLogits]) -> ShardedLogits:
        """What the experts say together of images with these features: the mean of their logits."""
        return mean_logits(experts)

    def answers(self, image_B3HW: torch.Tensor) -> tuple[list[ProductLogits], ShardedLogits]:
        """What each expert says of the images, and what they say together."""
        feature = self.shared_features(image_B3HW)
        experts = self.experts_of(feature)
        return experts, self.together(feature, experts)

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.answers(image_B3HW)[1]

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        """Of the branches' features [B,K,D]."""
        direction_BKD = F.normalize(feature_BD, dim=2)
        return Embeddings({"direct": direction_BKD.flatten(1) / self.network.branches**0.5})


def by_branch(feature: SharedFeature) -> list[SharedFeature]:
    """Each branch's own of features [b,K,D] that were gathered together."""
    pairs = zip(feature.own_bD.unbind(dim=1), feature.all_BD.unbind(dim=1), strict=True)
    return [SharedFeature(own_bD, all_BD, feature.shares) for own_bD, all_BD in pairs]


def mean_logits(experts: Sequence[ProductLogits]) -> ProductLogits:
    """The mean of several products: the product of the vectors side by side with a K-th of the rows side by side."""
    first, count = experts[0], len(experts)
    weight_CD = torch.cat([_lengthened(expert.rows) for expert in experts], dim=1) / count
    bias_C = None if first.rows.bias_C is None else sum(expert.rows.bias_C for expert in experts) / count
    vector_BD = torch.cat([expert.vector_BD for expert in experts], dim=1)
    return ProductLogits(vector_BD, Rows(weight_CD, bias_C), first.classes, first.shares)


def _lengthened(rows: Rows) -> torch.Tensor:
    """The rows [C, D] as they are multiplied: unit rows have the length 1."""
    return F.normalize(rows.weight_CD, dim=1, eps=MIN_NORM) if rows.unit else rows.weight_CD


def whole_logits(experts: Sequence[ProductLogits]) -> torch.Tensor:
    """All classes' logits of every expert for the global batch, [K, B, C], on every rank."""
    return torch.stack([expert.whole_BC for expert in experts])


def equal_batches(batches: Sequence[Inputs]) -> list[Inputs]:
    """The streams' batches, all as long as the shortest: an image that one of them could not read leaves a gap."""
    size = min(len(batch.label_B) for batch in batches)
    return [Inputs(batch.image_B3HW[:size], batch.label_B[:size]) for batch in batches]
