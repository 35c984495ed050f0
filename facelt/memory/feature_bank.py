"""Features of training images, kept for as long as a stage learns from them.

b images of this rank, B of all ranks, N kept, D feature, C classes.
"""

import torch

from facelt.parallel import SharedFeature


class FeatureBank:
    """What a pass over the training set saw, whole and the same on every rank.

    It is no part of a state: features of a network that stands still can be taken again.
    """

    def __init__(self) -> None:
        self._features: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self.is_closed = False

    def add(self, feature: SharedFeature, label_b: torch.Tensor, wanted_C: torch.Tensor | None = None) -> None:
        """Keeps the features of a batch, or those of the wanted classes alone."""
        label_B = feature.shares.gather(label_b)
        kept_B = torch.ones_like(label_B, dtype=torch.bool) if wanted_C is None else wanted_C[label_B]
        self._features.append(feature.all_BD.detach()[kept_B])
        self._labels.append(label_B[kept_B])

    def close(self) -> None:
        """The end of the pass."""
        self.feature_ND, self.label_N = torch.cat(self._features), torch.cat(self._labels)
        self._features, self._labels, self.is_closed = [], [], True

    def few(self, most: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(features, labels) of up to `most` images of each class, drawn without replacement."""
        order_N = torch.randperm(len(self.label_N), generator=generator, device=self.label_N.device)
        drawn_N = order_N[turn_in_class(self.label_N[order_N]) < most]
        return self.feature_ND[drawn_N], self.label_N[drawn_N]


def turn_in_class(label_N: torch.Tensor) -> torch.Tensor:
    """How many rows of the same class come before each row, int64 [N]."""
    sorted_N, order_N = label_N.sort(stable=True)
    turn_N = torch.empty_like(label_N)
    turn_N[order_N] = torch.arange(len(label_N), device=label_N.device) - torch.searchsorted(sorted_N, sorted_N)
    return turn_N
