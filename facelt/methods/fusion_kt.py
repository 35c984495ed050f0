"""Knowledge transfer from the nearest class mean to a second linear classifier, while the network trains.

B images of all ranks, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import FusionKtConfig
from facelt.heads import LinearHead, NcmHead
from facelt.losses import distillation
from facelt.methods.base import Inputs, Method, Progress, StepOutput, Stream
from facelt.methods.two_classifiers import mean_where, to_range_of
from facelt.models.network import Network
from facelt.parallel import ProductLogits, SharedFeature


class FusionKt(Method):
    """Network and first head learn by cross-entropy; the second head, which answers, learns on the same features.

    Into these it sends no gradient. Images whose nearest mean is right teach it by (1 - transfer) cross-entropy +
    transfer * KL(nearest mean || second head), the others by cross-entropy; each kind's mean counts whole, as in the
    released code. Before the means are taken, all images are others.
    """

    def __init__(
        self, config: FusionKtConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.config = config
        self.first = LinearHead(network.dim, num_classes)
        self.head = LinearHead(network.dim, num_classes)
        self.ncm = NcmHead(network.dim, num_classes, rate=config.rate)
        self._due = False

    def streams(self) -> Sequence[Stream]:
        return (Stream("instance"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        heads = [*self.first.parameters(), *self.head.parameters()]
        return {"network": list(self.network.parameters()), "head": heads}

    def begin_epoch(self, progress: Progress, validation: Mapping[str, float]) -> None:
        self._due = progress.share >= self.config.memory_from

    @property
    def wants_pass(self) -> bool:
        return self._due and not self.ncm.memory.is_filled

    def accumulate(self, batch: Inputs) -> None:
        self.ncm.accumulate(SharedFeature.of(self.features(batch.image_B3HW)), batch.label_B)

    def finish_pass(self) -> None:
        self.ncm.finish()

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        still = SharedFeature(feature.own_bD.detach(), feature.all_BD.detach(), feature.shares)
        first = self.first(feature)
        cross_entropy = first.cross_entropy(batch.label_B)
        label_B = feature.shares.gather(batch.label_B)
        if self._due:
            transferred = self._transfer(self.head(still).whole_BC, first.whole_BC.detach(), still, label_B)
        else:
            transferred = self.head(still).cross_entropy(batch.label_B)
        return StepOutput(
            cross_entropy + transferred,
            {"cross_entropy": cross_entropy.detach(), "transfer_loss": transferred.detach()},
            after=(lambda: self.ncm.update(still, batch.label_B)) if self._due else (lambda: None),
        )

    def logits(self, image_B3HW: torch.Tensor) -> ProductLogits:
        return self.head(SharedFeature.of(self.features(image_B3HW)))

    def _transfer(
        self, second_BC: torch.Tensor, first_BC: torch.Tensor, still: SharedFeature, label_B: torch.Tensor
    ) -> torch.Tensor:
        """The second head's loss, a scalar, the same on every rank."""
        ncm_BC = self.ncm(still).whole_BC
        if self.config.scaled:
            ncm_BC = to_range_of(first_BC, ncm_BC)
        right_B = ncm_BC.argmax(dim=1) == label_B
        own_B = F.cross_entropy(second_BC, label_B, reduction="none")
        share = self.config.transfer
        taught_B = (1 - share) * own_B + share * distillation(second_BC, ncm_BC)
        return mean_where(taught_B, right_B) + mean_where(own_B, ~right_B)
