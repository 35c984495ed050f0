"""What goes into an ONNX file: a model as one function of `data`, made of operators that can be written down.

N images, H W their size, D feature, C identities.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelt.engine.handed_on import TrainedModel
from facelt.methods import Method
from facelt.methods.dynamic_meta import DynamicMeta

# What `data` is by agreement of face tools: (x - 127.5) / 127.5, in units of the full range.
MEAN = STD = 0.5


class Feature(nn.Module):
    """`data` [N,3,H,W] to the network's feature, the mean of image and mirror image if `mirrored`.

    Both halves pass the network as one batch, so that the graph holds it once. A model of another normalisation begins
    with a 1x1 convolution that takes `data` to its own: it cannot go into the first layer, which pads with zeros.
    """

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.network = model.method.network
        self.mirrored = mirrored
        self.own_scale = _to_own_scale(model.config.data.mean, model.config.data.std)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        if self.mirrored:
            data_N3HW = torch.cat([data_N3HW, data_N3HW.flip(-1)])
        feature_ND = self.network(data_N3HW if self.own_scale is None else self.own_scale(data_N3HW))
        return feature_ND.unflatten(0, (2, -1)).mean(dim=0) if self.mirrored else feature_ND


class DirectGraph(nn.Module):
    """`data` -> the `direct` embedding, of unit length."""

    outputs = ("embedding",)

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.feature = Feature(model, mirrored)
        # Kept from becoming a part of this module: its head is no part of the file.
        self._method = (model.method,)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        (method,) = self._method
        # A method with a memory would compute its meta-embedding as well.
        embed = Method.embed_features if isinstance(method, DynamicMeta) else type(method).embed_features
        return embed(method, self.feature(data_N3HW)).by_kind["direct"]


class MetaGraph(nn.Module):
    """`data` -> the `meta` embedding and the reachability, with the memory inside.

    DynamicMetaHead.embed on one rank, in operators that ONNX has. Of size N x C there are the hallucinator's shares and
    the products with the centroids; nothing is of size N x C x D. Both big matrices, 2 C D values, are held once.
    """

    outputs = ("embedding", "reachability")

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.feature = Feature(model, mirrored)
        head = model.method.head
        self.hallucinator, self.selector = head.hallucinator, head.selector
        self.convention, self.use_reachability = head.convention, head.use_reachability
        self.min_distance = head.memory.min_distance
        centroid_CD = head.memory.centroid_CD.detach()
        half_C = 0.5 * torch.linalg.vector_norm(centroid_CD, dim=1).square()
        self.register_buffer("centroid_CD", centroid_CD)
        # The nearest centroid has the largest f.c - |c|^2 / 2; one without an image is never it.
        self.register_buffer("offset_C", (-half_C).masked_fill(~head.memory.filled_C, -torch.inf))

    def forward(self, data_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        feature_ND = self.feature(data_N3HW)
        reachability_N = self.convention.reachability_scale / self._distance(feature_ND)
        vector_ND = feature_ND
        if self.hallucinator is not None:
            share_NC = F.linear(feature_ND, self.hallucinator.weight, self.hallucinator.bias).softmax(dim=1)
            memory_ND = share_NC @ self.centroid_CD
            if self.selector is not None:
                memory_ND = torch.tanh(self.selector(feature_ND)) * memory_ND
            vector_ND = feature_ND + memory_ND
        if self.use_reachability:
            vector_ND = reachability_N[:, None] * vector_ND
        return self.convention.squash(vector_ND), reachability_N

    def _distance(self, feature_ND: Tensor) -> Tensor:
        nearest_N = F.linear(feature_ND, self.centroid_CD, self.offset_C).argmax(dim=1)
        distance_N = torch.linalg.vector_norm(feature_ND - self.centroid_CD[nearest_N], dim=1)
        return distance_N.clamp_min(self.min_distance)


GRAPHS = {"direct": DirectGraph, "meta": MetaGraph}


def _to_own_scale(mean: Sequence[float], std: Sequence[float]) -> nn.Conv2d | None:
    """(STD * data + MEAN - mean) / std by channel; None where that is `data`."""
    if set(mean) == {MEAN} and set(std) == {STD}:
        return None
    convolution = nn.Conv2d(3, 3, 1, groups=3)
    with torch.no_grad():
        std_3 = torch.tensor(std)
        convolution.weight.copy_((STD / std_3)[:, None, None, None])
        convolution.bias.copy_((MEAN - torch.tensor(mean)) / std_3)
    return convolution
