"""A classifier on the feature, trained by one loss; by cross-entropy it is the plain model.

B images of all ranks, W ranks, D feature.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from facelt.config import ClassifyConfig
from facelt.heads import HEADS, Margin
from facelt.heads.head import take_head
from facelt.losses import METRIC_LOSSES
from facelt.methods.base import Inputs, Method, Progress, StepOutput, Stream
from facelt.methods.foreground import ForegroundMoves
from facelt.methods.mixing import MIXINGS, Blend
from facelt.methods.objective import Objective
from facelt.models.network import Network
from facelt.parallel import ShardedLogits, SharedFeature, gather_whole


class Classify(Method):
    """One head, one loss on its logits, and one on the features if asked for; the images may be blends, or moved.

    What a step with plain cross-entropy hands to the collectives on each rank, as bytes of the whole that is gathered
    or summed: with B images of all ranks and P = W * the most of one rank, 4 P D + 8 P + 12 B + 8 W forward (features,
    labels, maximum, sum and own logit, the ranks' numbers of images) and 4 P D back, for every head and any number of
    identities. Where identities are sampled the labels travel twice, 8 P more. Another loss gathers the logits of all
    classes instead of the 12 B. A metric loss gathers features and labels once more, 4 P D + 8 P.
    A blend has two losses of the same logits.
    """

    def __init__(
        self, config: ClassifyConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.keep_head = config.keep_head
        self.sampler, self.shots = config.sampler, config.shots
        options = {} if config.scale is None else {"scale": config.scale}
        if config.margins is not None:
            options["margin"] = Margin(*config.margins)
        if config.learn_scale:
            options["learn_scale"] = True
        if config.sample_rate < 1:
            options["sample_rate"] = config.sample_rate
        self.head = HEADS[config.head](network.dim, num_classes, **options)
        if config.loss.name == "sigmoid_focal":
            # Every sigmoid starts at 1 / C, so that the many wrong classes do not drown the own one.
            nn.init.constant_(self.head.bias, -math.log(max(num_classes - 1, 1)))
        self.objective = Objective(config.loss, config.weights, counts_C)
        self.metric_loss = config.metric_loss
        self.mixing = None if config.mix is None else MIXINGS[config.mix.name](counts_C, **config.mix.options)
        moves = config.move_foreground
        self.moves = None if moves is None else ForegroundMoves(counts_C, moves.threshold)

    def streams(self) -> Sequence[Stream]:
        return (Stream(self.sampler, self.shots),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """With `keep_head` the head goes on where the earlier stage's ended; otherwise it starts anew."""
        if self.keep_head:
            take_head(self.head, state)

    def learn_from(self, teachers: Sequence[Method]) -> None:
        """With `move_foreground`, from the one teacher that says what is foreground."""
        super().learn_from(teachers)
        if self.moves is not None:
            self.moves.learn_from(teachers[0])

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        generator = progress.generator("cpu")
        if self.moves is not None:
            batch = self.moves(batch, self.teachers[0], generator)
        if self.mixing is not None:
            return self._mixed_step(self.mixing.draw(batch.label_B, progress, generator), batch, progress)
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        logits = self.head.training_logits(feature, batch.label_B, progress.taken)
        loss = self.objective(logits, batch.label_B, progress)
        if self.metric_loss is None:
            return StepOutput(loss)
        whole_BD = gather_whole(feature.own_bD, feature.shares)
        label_B = feature.shares.gather(batch.label_B)
        metric = METRIC_LOSSES[self.metric_loss.name](whole_BD, label_B, **self.metric_loss.options)
        parts = {"classification_loss": loss.detach(), "metric_loss": metric.detach()}
        return StepOutput(loss + self.metric_loss.weight * metric, parts)

    def _mixed_step(self, blend: Blend, batch: Inputs, progress: Progress) -> StepOutput:
        if self.mixing.on_features:
            feature = SharedFeature.of(blend.of(self.features(batch.image_B3HW)))
        else:
            feature = SharedFeature.of(self.features(blend.of(batch.image_B3HW)))
        logits = self.head.training_logits(feature, blend.label_b, progress.taken)
        return StepOutput(blend.loss(lambda label_b: self.objective(logits, label_b, progress)))

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(SharedFeature.of(self.features(image_B3HW)))
