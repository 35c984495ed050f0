"""Interface of training methods: forward pass, loss, samplers, parameter groups, embeddings.

B batch, b images of this rank, D feature, C identities.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from facelt.distributed.comm import rank
from facelt.distributed.logits import GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.metrics.classification import ShotBand
from facelt.models.network import Network

ClassifierInit = Literal["random", "class_means"]
"""Initial rows of a cosine classifier: random ones, or the class means of the training features."""


class TrainBatch(NamedTuple):
    """Network input of one step: images float [B,3,H,W], labels int64 [B]."""

    image_B3HW: torch.Tensor
    label_B: torch.Tensor


@dataclass(frozen=True)
class SamplerSpec:
    """Request for a sampler by its registered name.

    `shots` restricts it to the images of many-, medium- or few-shot classes. Samplers of one method that differ in
    `draw` have independent orders and augmentations.
    """

    sampler: str
    shots: ShotBand | None = None
    draw: int = 0


@dataclass(frozen=True)
class StepContext:
    """Position in a stage: epoch of `epochs`, step of the `steps` per epoch, both from 0."""

    epoch: int
    epochs: int
    step: int
    steps: int

    @property
    def epoch_fraction(self) -> float:
        """Finished epochs as a fraction of the stage's epochs."""
        return self.epoch / self.epochs if self.epochs else 1.0

    @property
    def global_step(self) -> int:
        """Steps since the stage began."""
        return self.epoch * self.steps + self.step

    def generator(self, device: torch.device | str, same_on_all_ranks: bool = False) -> torch.Generator:
        """Returns a random generator seeded by the run's seed, the step and the rank, without other state.

        With `same_on_all_ranks` every rank gets the same generator, for computations on the global batch.
        """
        source = (0, 3) if same_on_all_ranks else (rank(), 2)
        entropy = (torch.initial_seed(), self.global_step, *source)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class StepOutput:
    """Loss of a step, its parts by name for the log, and a function to call after the optimiser step.

    Its argument is a bool scalar on the device: False if the loss or a gradient of the step is not finite, which the
    host does not know yet. Then the function must change no bit.
    """

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    after: Callable[[torch.Tensor], None] = lambda is_finite: None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings by kind, each [B, D], and the reachability [B] if the method has a memory."""

    by_kind: Mapping[str, torch.Tensor]
    reachability_B: torch.Tensor | None = None


class Method(nn.Module, ABC):
    """Base class of methods: a network, and one or more classifiers trained on it.

    Methods are built as (config, network, num_classes, counts_C), where `counts_C` int64 [C] are the training images of
    each class, or None for a trained model that is only used. A method with a single classifier names it `head`.

    `kinds` are the embeddings that `embed` returns. With `bf16` the network runs in bfloat16, everything after it in
    float32. `training_network` runs the network in training if it is wrapped in DDP or compiled; `validation` are the
    figures of a teacher's saved epoch. Neither these nor `teachers` are part of the state dict.
    """

    kinds: tuple[str, ...] = ("direct",)
    # The method trains a network of several branches.
    is_branched: bool = False

    def __init__(self, network: Network) -> None:
        super().__init__()
        name = type(self).__name__
        if self.is_branched and network.branches == 1:
            raise UserError(f"branches: {name} needs a multi-branch network; set branches.count and branches.split")
        if network.branches > 1 and not self.is_branched:
            raise UserError(f"branches: {name} trains a single-branch network; remove the key")
        self.network = network
        self.bf16 = False
        self.training_network: Callable[..., torch.Tensor] | None = None
        self.teachers: tuple[Method, ...] = ()
        self.validation: Mapping[str, float] = {}

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.network.dim

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        """Returns the samplers that the method trains with; each gives one batch per step."""
        return (SamplerSpec("instance"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        """Returns the parameters by the learning-rate multiplier that applies: `network`, `head`, `memory`."""
        network = list(self.network.parameters())
        in_network = {id(parameter) for parameter in network}
        return {"network": network, "head": [value for value in self.parameters() if id(value) not in in_network]}

    @abstractmethod
    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        """Returns the loss of one step, of the global batch and equal on all ranks."""

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        """Returns the closed-set logits of images."""
        return self.head(self.gathered_features(image_B3HW))

    def logits_and_reachability(self, image_B3HW: torch.Tensor) -> tuple[ShardedLogits, torch.Tensor | None]:
        """Returns the logits, and the reachability [b] of this rank's images if the method has a memory."""
        return self.logits(image_B3HW), None

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Initialises classifiers from an earlier stage's state; the network has been loaded before."""

    def set_teachers(self, teachers: Sequence["Method"]) -> None:
        """Sets the stage's teachers: trained methods in evaluation mode with frozen weights."""
        self.teachers = tuple(teachers)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        """Is called before each epoch, also a resumed one, with the last validation's figures by name."""

    def end_epoch(self) -> None:
        """Is called after the steps of an epoch, before validation and checkpoint."""

    @property
    def needs_dataset_pass(self) -> bool:
        """The method needs a pass of `observe` over the training set.

        It is read before each epoch, after each pass, and in stages without epochs; all ranks must agree. What a pass
        stores outside the state dict is lost on resume, and the pass is then repeated.
        """
        return False

    def observe(self, batch: TrainBatch) -> None:
        """Processes one batch of the pass over the training set, in evaluation mode."""
        raise TypeError(f"{type(self).__name__} needs no pass over the training set")

    def end_dataset_pass(self) -> None:
        """Is called after the last batch of the pass."""
        raise TypeError(f"{type(self).__name__} needs no pass over the training set")

    @property
    def tunable_values(self) -> Sequence[float]:
        """Values of the one hyperparameter that is tuned on the validation images at the end of the stage."""
        return ()

    def set_value(self, value: float) -> None:
        """Sets that hyperparameter."""
        raise TypeError(f"{type(self).__name__} has no tunable value")

    def diagnostics(self) -> Mapping[str, float]:
        """Returns figures for the log at the end of an epoch."""
        return {}

    def embed(self, image_B3HW: torch.Tensor) -> Embeddings:
        """Returns the embeddings of images from the mean feature of each image and its mirror image."""
        feature_BD = (self.features(image_B3HW) + self.features(image_B3HW.flip(-1))) / 2
        return self.embed_features(feature_BD)

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        """Returns the embeddings of features; `direct` is the feature at unit length."""
        return Embeddings({"direct": F.normalize(feature_BD, dim=1)})

    def features(self, *image_B3HW: torch.Tensor) -> torch.Tensor:
        """Returns features [B, D], never in half precision; a multi-branch network takes one input for all branches or
        one per branch, and returns [B, K, D].
        """
        run = self.training_network if self.training and self.training_network is not None else self.network
        return self.features_of(run, *image_B3HW)

    def features_of(self, network: Callable[..., torch.Tensor], *image_B3HW: torch.Tensor) -> torch.Tensor:
        """Returns the features by a network of the method, which runs in bfloat16 if `bf16` is set."""
        with torch.autocast(image_B3HW[0].device.type, torch.bfloat16, enabled=self.bf16):
            feature_BD = network(*image_B3HW)
        return feature_BD.float() if feature_BD.dtype == torch.bfloat16 else feature_BD

    def gathered_features(self, *image_B3HW: torch.Tensor) -> GatheredFeatures:
        """Returns the features of this rank's images and those of all ranks."""
        return GatheredFeatures.gather(self.features(*image_B3HW))


class FrozenBackboneMethod(Method):
    """Base class of methods on a frozen network, weights and running statistics included.

    Values computed from its features therefore stay valid. All trained parameters belong to the head.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        network.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode of everything but the network, which stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("class_aware"),)


class PostHocMethod(FrozenBackboneMethod):
    """Base class of methods without training steps, fitted by passes over the training set or not at all."""

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        raise TypeError(f"{type(self).__name__} takes no steps: set epochs: 0 in its stage")
