"""The whole recipe of a training run: data, model, optimiser, and a list of stages."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from facelt.config.base import NamedSettings, StrictModel
from facelt.config.registry import BACKBONES, DATA_KINDS, EMBEDDINGS, METHODS

Part = Literal["backbone", "attention", "embedding", "head"]

RESUME_MAY_CHANGE = frozenset(
    {
        *("data.workers", "data.cache_on_device", "log_every", "checkpoint_every", "checkpoint_async"),
        *("keep_checkpoints", "max_nonfinite_steps", "timeout_minutes", "validation.sets"),
    }
)
"""Keys that say how a run goes about its work: with other values it trains the same model, and may go on with them."""


def matches_any(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key, or a section it lies in, is one of `keys`."""
    return any(f"{key}.".startswith(f"{one}.") for one in keys)


def is_external_ref(name: str) -> bool:
    """Whether a stage's name is the FOLDER/STAGE of another run."""
    return "/" in name


Share = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(StrictModel):
    """The network all stages share; `pretrained` is a file of weights (torchvision's or arcface_torch's names)."""

    backbone: Annotated[str, BACKBONES.name_choice()] = "resnet50"
    dim: int = Field(512, ge=1)
    pretrained: Path | None = None


class OptimConfig(StrictModel):
    """Stochastic gradient descent. `lr` is the head's; a stage gives the other parts a share of it.

    `batch` images make an update; they pass through the network in `accumulate` micro-batches, so that only one of
    these needs room in memory.
    """

    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    batch: int = Field(128, ge=2)
    accumulate: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "OptimConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: looks ahead along the momentum, which is 0; raise momentum or leave it out")
        return self

    @model_validator(mode="after")
    def _micro_batches_have_two_images(self) -> "OptimConfig":
        if self.batch < 2 * self.accumulate:
            raise ValueError(
                f"batch: {self.batch} images are too few for accumulate: {self.accumulate}, two images for each "
                "micro-batch; raise batch or lower accumulate"
            )
        return self


class LrMultipliers(StrictModel):
    """Each part's learning rate as a share of `optim.lr`; 0 freezes nothing, it only stands still."""

    network: float = Field(1.0, ge=0)
    head: float = Field(1.0, ge=0)
    memory: float = Field(1.0, ge=0)


class ScheduleConfig(StrictModel):
    """The learning rate over the epochs of a stage.

    `step`: x `factor` after every `every` epochs; `multistep`: x `factor` at each of the shares `at` of the stage's
    epochs, so that a shortened stage keeps its shape; `cosine`: to 0; `constant`.
    """

    name: Literal["step", "multistep", "cosine", "constant"] = "step"
    step_size: int = Field(10, ge=1)
    milestones: tuple[Share, ...] = (0.8, 0.9)
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)


class BranchesConfig(StrictModel):
    """A network of `count` branches behind layers they share: up to and including `split`, or none.

    `last_block` shares all but the last residual block; `batch_norm` and `conv` share all, and a branch is that one
    layer on the last map. The layers behind a layer have `width` times their channels.
    """

    count: int = Field(3, ge=2)
    split: Literal["none", "layer1", "layer2", "layer3", "last_block", "batch_norm", "conv"] = "layer1"
    width: float = Field(1.0, ge=0.5, le=1)

    @model_validator(mode="after")
    def _width_is_of_whole_layers(self) -> "BranchesConfig":
        if self.width != 1 and not self.split.startswith("layer"):
            raise ValueError(f"width: narrows the layers behind a layer; with the split {self.split} leave it out")
        return self


class MethodSettings(NamedSettings):
    """Settings of a method, which a stage chooses by their `name`."""

    @property
    def num_teachers(self) -> range:
        """How many trained stages the method learns from: none, but for those that say so."""
        return range(1)

    def teacher_error(self, stage: "StageConfig") -> str | None:
        """What is wrong with a teacher from this stage of the same run; None where it will do."""
        return None


class SecondStageSettings(MethodSettings):
    """A method on a model that an earlier stage trained; a `post_hoc` one is fitted without steps."""

    post_hoc: ClassVar[bool] = False


MethodConfig = Annotated[MethodSettings, METHODS.choice()]


class StageConfig(StrictModel):
    """One stage: a method, how long, which parts learn how fast, what is frozen, and where it starts from.

    `attention: true` is OLTR's modulated attention, `spatial` the plain one it is compared with. `start` names an
    earlier stage of the same run, or the FOLDER/STAGE of another; `teachers` are stages named alike, whose trained
    models the method may ask and never changes. `optim` stands for the run's in this stage. Frozen parts
    keep their weights; with `batch_norm: frozen` the whole network keeps its running statistics and normalises by them.
    Methods of several experts ask for `branches`. A method that is fitted without steps has `epochs: 0`. `keep` is the
    epoch handed on: the best by validation accuracy (the last one where there is no validation) or the last.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    method: MethodConfig
    epochs: int = Field(ge=0)
    init_from: str | None = None
    teachers: tuple[str, ...] = ()
    attention: bool | Literal["spatial"] = False
    embedding: Annotated[str, EMBEDDINGS.name_choice()] = "linear_bn"
    branches: BranchesConfig | None = None
    optim: OptimConfig | None = None
    lr_mult: LrMultipliers = LrMultipliers()
    schedule: ScheduleConfig = ScheduleConfig()
    freeze: tuple[Part, ...] = ()
    batch_norm: Literal["train", "frozen"] = "train"
    keep: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> "StageConfig":
        wanted = self.method.num_teachers
        if len(self.teachers) not in wanted:
            number = str(wanted[0]) if len(wanted) == 1 else f"{wanted[0]} to {wanted[-1]}"
            named = f"learns from {number} of them, {len(self.teachers)} are named"
            raise ValueError(f"teachers: {self.method.name} as it is set {named}")
        if isinstance(self.method, SecondStageSettings):
            if self.init_from is None:
                raise ValueError(f"init_from: {self.method.name} needs a trained model; name its stage")
            if self.method.post_hoc and self.epochs:
                raise ValueError(f"epochs: {self.method.name} takes no steps; set it to 0")
        return self


class ValidationConfig(StrictModel):
    """What each validation measures beside accuracy: `sets` of pairs for verification, .bin files or lists, by name.

    The network's 10-fold accuracy on each, flip-averaged, is logged as `verification_<name>`. No epoch is chosen by it.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], Path] = Field(default_factory=dict)


class TrainConfig(StrictModel):
    """What `facelt train` runs. `precision: bf16` is the network's alone; heads, memory and losses stay in float32.

    `optim.batch` is the global batch, whatever the number of processes. A checkpoint is written every
    `checkpoint_every` steps and at each epoch's end; the newest `keep_checkpoints` stay until the stage is finished.
    With `checkpoint_async` training goes on while it is written, from a copy in host memory.

    A step whose loss or gradient is not finite is skipped and its images are listed in the folder `nonfinite` of the
    run; where a stage has more than `max_nonfinite_steps` of them it stops. A process that waits longer than
    `timeout_minutes` for another takes it for lost and stops.
    """

    out: Path
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    data: Annotated[StrictModel, DATA_KINDS.choice()]
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    validation: ValidationConfig = ValidationConfig()
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    checkpoint_async: bool = False
    keep_checkpoints: int = Field(2, ge=2)
    max_nonfinite_steps: int = Field(3, ge=0)
    timeout_minutes: float = Field(10, gt=0, le=7 * 24 * 60)

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> "TrainConfig":
        earlier: dict[str, StageConfig] = {}
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"stages: the name {stage.name!r} is given twice")
            allowed = ", ".join([*earlier, "the FOLDER/STAGE of another run"])
            if stage.init_from is not None and stage.init_from not in earlier and not is_external_ref(stage.init_from):
                raise ValueError(f"stages: {stage.name!r} starts from {stage.init_from!r}; allowed: {allowed}")
            for teacher in stage.teachers:
                if teacher not in earlier and not is_external_ref(teacher):
                    raise ValueError(f"stages: {stage.name!r} has the teacher {teacher!r}; allowed: {allowed}")
                if teacher in earlier and (reason := stage.method.teacher_error(earlier[teacher])):
                    raise ValueError(f"stages: {stage.name!r} has the teacher {teacher!r}, which {reason}")
            earlier[stage.name] = stage
        return self
