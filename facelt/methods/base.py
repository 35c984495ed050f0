"""What a training method is: it owns forward and loss, and the trainer knows it by nothing else.

B batch, D feature, C identities.

Methods on the features of a trained network, which stays as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from facelt.distributed.comm import rank
from facelt.distributed.logits import ShardedLogits
from facelt.errors import UserError
from facelt.models.network import Network

Shots = Literal["many", "medium", "few"]


class TrainBatch(NamedTuple):
    """Network input of one step: images float [B,3,H,W], labels int64 [B]."""

    image_B3HW: torch.Tensor
    label_B: torch.Tensor


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler the method wants its batches from, by its name in the table of samplers.

    `shots` keeps to the images of many-, medium- or few-shot classes. Streams of another `draw` have an order and
    augmentations of their own.
    """

    sampler: str
    shots: Shots | None = None
    draw: int = 0


@dataclass(frozen=True)
class StepContext:
    """Where a stage stands: the epoch and its total, the step of the epoch and its total, all from 0."""

    epoch: int
    epochs: int
    step: int
    steps: int

    @property
    def epoch_fraction(self) -> float:
        """How much of the stage's epochs is over."""
        return self.epoch / self.epochs if self.epochs else 1.0

    @property
    def global_step(self) -> int:
        """Steps taken since the stage began."""
        return self.epoch * self.steps + self.step

    def generator(self, device: torch.device | str, same_on_all_ranks: bool = False) -> torch.Generator:
        """What this step draws from on this rank: equal for equal seeds, steps and ranks, and of no other state.

        With `same_on_all_ranks` it is the same on every rank, for what each of them computes of the whole batch.
        """
        source = (0, 3) if same_on_all_ranks else (rank(), 2)
        entropy = (torch.initial_seed(), self.global_step, *source)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class StepOutput:
    """A step's loss, its parts by name for the log, and what is to happen once the optimiser has moved."""

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings by kind, each [B, D], and the reachability [B] where the method has a memory."""

    by_kind: Mapping[str, torch.Tensor]
    reachability_B: torch.Tensor | None = None


class Method(nn.Module, ABC):
    """A network and what is trained on it.

    `kinds` names the embeddings `embed` returns. With `bf16` the network runs in bfloat16 where that is safe; what
    follows it always runs in float32. `replicas` runs the network in training where several ranks train it together;
    it is no part of the state, nor are `teachers` and a teacher's `validation`, the figures of its handed-on epoch.

    Methods are built as (config, network, num_classes, counts_C): the training images of each class, int64 [C], or
    None where a trained model is only used, which must not need them.
    """

    kinds: tuple[str, ...] = ("direct",)
    # Whether it trains a network of several branches.
    branched: bool = False

    def __init__(self, network: Network) -> None:
        super().__init__()
        if self.branched and network.branches == 1:
            raise UserError(f"branches: {type(self).__name__} trains several; say how many, and what they share")
        if network.branches > 1 and not self.branched:
            raise UserError(f"branches: {type(self).__name__} trains a network of one; leave the key out")
        self.network = network
        self.bf16 = False
        self.replicas: Callable[..., torch.Tensor] | None = None
        self.teachers: tuple[Method, ...] = ()
        self.validation: Mapping[str, float] = {}

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.network.dim

    @abstractmethod
    def sampler_specs(self) -> Sequence[SamplerSpec]:
        """The samplers the method wants, one batch from each a step."""

    @abstractmethod
    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        """Parameters by part: `network`, `head`, and `memory` for what has an optimiser of its own."""

    @abstractmethod
    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        """Loss of one step."""

    @abstractmethod
    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        """Closed-set logits of images."""

    def logits_and_reachability(self, image_B3HW: torch.Tensor) -> tuple[ShardedLogits, torch.Tensor | None]:
        """The same logits, and this rank's images' reachability [b] where the method has a memory."""
        return self.logits(image_B3HW), None

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes what it can use from an earlier stage's method; the network is already loaded."""

    def set_teachers(self, teachers: Sequence["Method"]) -> None:
        """Takes the stage's teachers, as many as the configuration wants: trained methods in evaluation mode, whose
        weights stand still.
        """
        self.teachers = tuple(teachers)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        """Called before each epoch with the last validation's figures, by name."""

    def end_epoch(self) -> None:
        """Called once an epoch's steps are over, before the method is validated or saved."""

    @property
    def needs_dataset_pass(self) -> bool:
        """Whether `observe` is to see the training set, asked before each epoch and after each pass.

        A stage without epochs is asked as well. What a pass leaves that is no part of the state is gone in a resumed
        run, which is asked anew. All ranks must answer alike.
        """
        return False

    def observe(self, batch: TrainBatch) -> None:
        """One batch of the pass over the training set, in evaluation mode."""
        raise TypeError(f"{type(self).__name__} asks for no pass over the training set")

    def end_dataset_pass(self) -> None:
        """The end of that pass."""
        raise TypeError(f"{type(self).__name__} asks for no pass over the training set")

    @property
    def tunable_values(self) -> Sequence[float]:
        """Values of the one number that is chosen on the validation images once the stage is over."""
        return ()

    def set_value(self, value: float) -> None:
        """Answers with that value from here on."""
        raise TypeError(f"{type(self).__name__} has no settings")

    def diagnostics(self) -> Mapping[str, float]:
        """Figures worth a line in the log at an epoch's end."""
        return {}

    def embed(self, image_B3HW: torch.Tensor) -> Embeddings:
        """Embeddings of images and their mirror images: the feature is the mean of both."""
        feature_BD = (self.features(image_B3HW) + self.features(image_B3HW.flip(-1))) / 2
        return self.embed_features(feature_BD)

    def embed_features(self, feature_BD: torch.Tensor) -> Embeddings:
        """Embeddings of features; the plain one is the feature's direction."""
        return Embeddings({"direct": F.normalize(feature_BD, dim=1)})

    def features(self, *image_B3HW: torch.Tensor) -> torch.Tensor:
        """Direct features [B, D], never in half precision; several inputs are for a network of several branches."""
        run = self.replicas if self.training and self.replicas is not None else self.network
        with torch.autocast(image_B3HW[0].device.type, torch.bfloat16, enabled=self.bf16):
            feature_BD = run(*image_B3HW)
        return feature_BD.float() if feature_BD.dtype == torch.bfloat16 else feature_BD


class FrozenBackboneMethod(Method):
    """No weight of the network moves and none of its running statistics, so what was made of its features stays valid.

    All that is learned belongs to the head.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        network.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBackboneMethod":
        """The network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("class_aware"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        network = list(self.network.parameters())
        owned = {id(parameter) for parameter in network}
        return {"network": network, "head": [value for value in self.parameters() if id(value) not in owned]}


class PostHoc(FrozenBackboneMethod):
    """Fitted by a pass over the training set, or by nothing but what it starts from: it takes no steps."""

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec("instance"),)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        raise TypeError(f"{type(self).__name__} takes no steps: a stage of it has epochs: 0")
