"""Semi-Siamese Training for identities with few images (Du et al., ECCV 2020).

b pairs of this rank, B of all ranks, Q entries of the queue, D feature.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from facelt.config.base import NamedSettings
from facelt.config.registry import MARGINS, register_method
from facelt.config.train import MethodSettings
from facelt.distributed.comm import BatchSplit, gather_replicated
from facelt.distributed.logits import NORM_EPS, GatheredFeatures
from facelt.errors import UserError
from facelt.heads.margins import CosFaceSettings
from facelt.heads.ncm import NcmHead
from facelt.methods.base import Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network

# Label of the random entries that the queue begins with.
_NO_IDENTITY = -1
_MARGINS = ("cosface", "arcface", "combined")


class SemiSiameseSettings(MethodSettings):
    """`queue` is the number of gallery features that a probe is classified among, fewer than there are identities.

    After each step the weights w of the gallery network become `momentum` * w + (1 - `momentum`) * v with the weights v
    of the network. `scale` multiplies the cosines; `margin` is one of the head `margin` that is the same for all images
    and leaves other classes as they are: `cosface`, `arcface` or `combined`. The stage's `optim.batch` counts pairs of
    images.
    """

    queue: int = Field(16384, ge=2)
    momentum: float = Field(0.999, ge=0, lt=1)
    scale: float = Field(32.0, gt=0)
    margin: Annotated[NamedSettings, MARGINS.choice()] = CosFaceSettings(name="cosface", m=0.35)

    @field_validator("margin")
    @classmethod
    def _is_the_same_for_all_images(cls, margin: NamedSettings) -> NamedSettings:
        if margin.name not in _MARGINS:
            raise ValueError(f"name: {margin.name} needs a classifier; choose {', '.join(_MARGINS)}")
        return margin


@register_method("semi_siamese", SemiSiameseSettings)
class SemiSiamese(Method):
    """Margin softmax of probe features over a queue of gallery features, which replaces a classifier.

    A batch has two images of each of B identities. The network under training gives probe features; the gallery
    network, a moving average of it that gets no gradient, gives gallery features. The B gallery features replace the
    oldest entries of the queue; a probe is classified among the Q entries, and the target is the one of its pair. Each
    image is probe of one pair and gallery image of another, and the loss is the mean of both directions. The
    gallery features of one direction, chosen at random, stay in the queue. Source: the authors' released code,
    JDAI-CV/FaceX-Zoo, with its settings for the queue and CosFace; there

    - an identity in the queue is left out of the next epoch; here its older entries are no negatives of its probes, so
      that no identity is left out;
    - the images of each direction have a forward pass; here one pass normalises over both images of all pairs.

    Batch norm of the gallery network normalises by the batch, as in that code, or by the frozen statistics of the
    network (`batch_norm: frozen`); it never changes running statistics.

    The identities have no classifier weights. The closed-set logits are the cosines to the class means: those of the
    initial network's features, moved towards the gallery features of each step.

    Communication per step and rank, in bytes of the gathered tensors, with P = W * the largest number of pairs on one
    rank: 8 P D for gallery features, 8 P for labels, 4 P for losses and 8 W for batch sizes; besides the gradient of
    the network nothing backward.
    """

    queue_QD: torch.Tensor
    queue_label_Q: torch.Tensor
    queue_position: torch.Tensor

    def __init__(
        self, config: SemiSiameseSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        identities = num_classes if counts_C is None else int((counts_C > 0).sum())
        if config.queue >= identities:
            raise UserError(
                f"method.queue: {config.queue} entries need more than {config.queue} identities, but the training data "
                f"have {identities}; lower it"
            )
        self.scale, self.margin = config.scale, MARGINS[config.margin.name](**config.margin.options)
        self.head = NcmHead(network.dim, num_classes)
        self.gallery = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.momentum)).requires_grad_(False)
        for module in self.gallery.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # A skipped step leaves nothing to restore.
                module.track_running_stats = False
        self.register_buffer("queue_QD", F.normalize(torch.randn(config.queue, network.dim), dim=1))
        self.register_buffer("queue_label_Q", torch.full((config.queue,), _NO_IDENTITY))
        self.register_buffer("queue_position", torch.tensor(0))
        self._averaged_step = -1

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return SamplerSpec("identity"), SamplerSpec("identity_mate")

    @property
    def needs_dataset_pass(self) -> bool:
        return not self.head.memory.is_filled

    def observe(self, batch: TrainBatch) -> None:
        self.head.accumulate(self.gathered_features(batch.image_B3HW), batch.label_B)

    def end_dataset_pass(self) -> None:
        """Sets the class means, and copies the initial network to the gallery network."""
        self.head.finish()
        self.gallery.update_parameters(self.network)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (image_b3HW, label_b), mate_batch = batches
        batch_split = BatchSplit.gather_sizes(len(label_b))
        if batch_split.total > len(self.queue_QD):
            raise UserError(
                f"method.queue: {len(self.queue_QD)} entries do not hold a batch of {batch_split.total} pairs; raise "
                "it, or lower optim.batch"
            )
        pair_image = torch.cat([image_b3HW, _select_mates(batches[0], mate_batch)])
        probe = F.normalize(self.features(pair_image), dim=1, eps=NORM_EPS).tensor_split(2)
        self.gallery.train(self.network.training)
        with torch.no_grad():
            gallery = F.normalize(self.features_of(self.gallery, pair_image), dim=1, eps=NORM_EPS).tensor_split(2)
        gathered = [GatheredFeatures.gather(feature_bD, batch_split) for feature_bD in gallery]
        label_B = batch_split.gather(label_b)
        row_B = self._oldest_rows(len(label_B))
        own_b = row_B[batch_split.local_slice]
        hidden_bQ = label_b[:, None] == self.queue_label_Q.index_copy(0, row_B, label_B)
        hidden_bQ = hidden_bQ.scatter(1, own_b[:, None], False)
        loss_b = torch.stack(
            [
                self._loss(probe_bD, feature.global_BD, row_B, own_b, hidden_bQ)
                for probe_bD, feature in zip(probe, reversed(gathered), strict=True)
            ]
        ).mean(dim=0)
        side = int(torch.randint(2, (), generator=context.generator("cpu", same_on_all_ranks=True)))

        def after(is_finite: torch.Tensor) -> None:
            self._enqueue(gathered[side], label_B, is_finite)
            self.head.update(gathered[side], label_b, is_finite)
            # Micro-batches share one update of the network.
            if self._averaged_step != context.global_step:
                self._average_network(is_finite)
                self._averaged_step = context.global_step

        return StepOutput(gather_replicated(loss_b, batch_split).mean(), after=after)

    def _loss(
        self,
        probe_bD: torch.Tensor,
        gallery_BD: torch.Tensor,
        row_B: torch.Tensor,
        own_b: torch.Tensor,
        hidden_bQ: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the loss [b] of each probe over the queue with the gallery features in the rows `row_B`.

        The target of a probe is in the row `own_b`; hidden entries do not count.
        """
        cosine_bQ = (probe_bD @ self.queue_QD.t()).index_copy(1, row_B, probe_bD @ gallery_BD.t())
        target_b1 = self.margin(cosine_bQ.gather(1, own_b[:, None]))
        logit_bQ = self.scale * cosine_bQ.scatter(1, own_b[:, None], target_b1).masked_fill(hidden_bQ, -torch.inf)
        return F.cross_entropy(logit_bQ, own_b, reduction="none")

    @torch.no_grad()
    def _average_network(self, is_finite: torch.Tensor) -> None:
        """Updates the gallery network, if the step is finite.

        `AveragedModel.update_parameters` does the same, but reads its counter.
        """
        before = list(self.gallery.parameters())
        averaged = [value.clone() for value in before]
        self.gallery.multi_avg_fn(averaged, list(self.network.parameters()), self.gallery.n_averaged)
        for value, new in zip(before, averaged, strict=True):
            torch.where(is_finite, new, value, out=value)
        # A step that is not finite has left those of the network unchanged.
        torch._foreach_copy_(list(self.gallery.module.buffers()), list(self.network.buffers()))
        self.gallery.n_averaged += is_finite

    def _oldest_rows(self, count: int) -> torch.Tensor:
        """Returns the rows of the queue's oldest entries, the oldest first, int64 [count]."""
        return (self.queue_position + torch.arange(count, device=self.queue_QD.device)) % len(self.queue_QD)

    def _enqueue(self, gallery: GatheredFeatures, label_B: torch.Tensor, is_finite: torch.Tensor) -> None:
        row_B = self._oldest_rows(len(label_B))
        self.queue_QD.index_copy_(0, row_B, torch.where(is_finite, gallery.global_BD, self.queue_QD[row_B]))
        self.queue_label_Q.index_copy_(0, row_B, torch.where(is_finite, label_B, self.queue_label_Q[row_B]))
        self.queue_position.add_(len(label_B) * is_finite).remainder_(len(self.queue_QD))


def _select_mates(batch: TrainBatch, mates: TrainBatch) -> torch.Tensor:
    """Returns an image of the same identity for each image of a batch, itself if the mates have none, [b,3,H,W].

    Both hold an identity at most once. They differ in identities only if images could not be decoded.
    """
    if not len(batch.label_B):
        return batch.image_B3HW
    image_N3HW, label_N = torch.cat([mates.image_B3HW, batch.image_B3HW]), torch.cat([mates.label_B, batch.label_B])
    return image_N3HW[(batch.label_B[:, None] == label_N).int().argmax(dim=1)]
