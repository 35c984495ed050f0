"""Classifier weights of classes that have few images (Gidaris and Komodakis, CVPR 2018, section 3.2).

E exemplars, D feature, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

# The query layer begins as the identity plus noise of this size, as in the released code.
NOISE = 0.001


class WeightGenerator(nn.Module):
    """w = phi_avg * mean_i f_i + phi_att * mean_i sum_b attention(phi_q f_i, key_b) w_b over exemplars i of a class.

    Exemplars and base weights have length 1. The attention is the softmax over the base classes of scale times cosine;
    phi_avg and phi_att are one factor a dimension.
    """

    def __init__(self, dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(dim) + NOISE * torch.randn(dim, dim))
            self.query.bias.zero_()
        self.key_CD = nn.Parameter(torch.randn(num_classes, dim) * (2 / dim) ** 0.5)
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.average_D = nn.Parameter(torch.ones(dim))
        self.attention_D = nn.Parameter(torch.ones(dim))

    def forward(
        self, exemplar_ED: torch.Tensor, label_E: torch.Tensor, weight_CD: torch.Tensor, base_C: torch.Tensor
    ) -> torch.Tensor:
        """Weights [C, D], 0 for a class without exemplars; `base_C` says which rows of `weight_CD` may be read."""
        exemplar_ED = F.normalize(exemplar_ED)
        query_ED = F.normalize(self.query(exemplar_ED))
        score_EC = self.scale * query_ED @ F.normalize(self.key_CD).t()
        read_ED = score_EC.masked_fill(~base_C, -torch.inf).softmax(dim=1) @ F.normalize(weight_CD)
        made_ED = self.average_D * exemplar_ED + self.attention_D * read_ED
        count_C1 = torch.bincount(label_E, minlength=len(weight_CD)).clamp_min(1)[:, None]
        return torch.zeros_like(weight_CD).index_add(0, label_E, made_ED) / count_C1
