"""A selector of the classifier: which of two to ask is learned from where the linear one fails.

B images of all ranks, D feature, C classes, H hidden, K largest linear logits.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import FusionAsmConfig
from facelt.methods.base import Inputs, Progress, StepOutput, Stream
from facelt.methods.two_classifiers import TwoClassifiers, mean_where
from facelt.models.network import Network
from facelt.parallel import MIN_NORM, GivenLogits, SharedFeature

SLOPE = 0.1


class Selector(nn.Module):
    """One number an image, from the feature's direction and the largest linear logits in descending order."""

    def __init__(self, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.look = nn.Linear(dim, hidden)
        self.decide = nn.Linear(hidden + top, 1)

    def forward(self, feature_BD: torch.Tensor, linear_BC: torch.Tensor) -> torch.Tensor:
        """Above 0 where the linear classifier is wrong and the nearest mean right, [B]."""
        seen_BH = F.leaky_relu(self.look(F.normalize(feature_BD, dim=1, eps=MIN_NORM)), SLOPE)
        top_BK = linear_BC.topk(self.top, dim=1).values
        return self.decide(torch.cat([seen_BH, top_BK], dim=1)).squeeze(1)


class FusionAsm(TwoClassifiers):
    """The nearest mean answers where the selector's sigmoid is above one half, the linear classifier elsewhere.

    The selector learns by binary cross-entropy; images to be handed over and the others count one half each, as in
    batches drawn evenly from both. Every rank holds it whole and computes the same loss of the whole batch.
    """

    hits_3: torch.Tensor

    def __init__(
        self, config: FusionAsmConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.scaled)
        self.selector = Selector(network.dim, config.hidden, min(config.top, num_classes))
        # Of the epoch: handed over rightly, wrongly, and missed. Part of the state, so that a resumed epoch counts on.
        self.register_buffer("hits_3", torch.zeros(3, dtype=torch.int64))

    def streams(self) -> Sequence[Stream]:
        return (Stream("instance"),)

    def begin_epoch(self, progress: Progress, validation: Mapping[str, float]) -> None:
        if not progress.step:
            self.hits_3.zero_()

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        both, label_B = self.answers(feature), feature.shares.gather(batch.label_B)
        wanted_B = (both.linear_BC.argmax(dim=1) != label_B) & (both.ncm_BC.argmax(dim=1) == label_B)
        score_B = self.selector(feature.all_BD, both.linear_BC)
        chosen_B = score_B.detach() > 0
        counted = torch.stack([(chosen_B & wanted_B).sum(), (chosen_B & ~wanted_B).sum(), (~chosen_B & wanted_B).sum()])
        return StepOutput(even_cross_entropy(score_B, wanted_B), after=lambda: self.hits_3.add_(counted))

    def diagnostics(self) -> Mapping[str, float]:
        """F1 of the epoch's choices on the training images: 2 right / (2 right + wrong + missed)."""
        right, wrong, missed = self.hits_3.tolist()
        return {"selector_f1": 2 * right / max(2 * right + wrong + missed, 1)}

    def logits(self, image_B3HW: torch.Tensor) -> GivenLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        both = self.answers(feature)
        hand_over_B1 = self.selector(feature.all_BD, both.linear_BC)[:, None] > 0
        return self.given(torch.where(hand_over_B1, both.ncm_BC, both.linear_BC), feature)


def even_cross_entropy(score_B: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
    """Half the mean over the images that are wanted plus half that over the others, a scalar."""
    term_B = F.binary_cross_entropy_with_logits(score_B, wanted_B.to(score_B.dtype), reduction="none")
    return (mean_where(term_B, wanted_B) + mean_where(term_B, ~wanted_B)) / 2
