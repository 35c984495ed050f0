"""Training configuration: data, model, optimiser, and a list of stages."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from facelt.config.base import Fraction, ImageSide, NamedSettings, StrictModel, custom_error
from facelt.config.registry import BACKBONES, DATA_KINDS, EMBEDDINGS, METHODS
from facelt.errors import UserError

NetworkPart = Literal["backbone", "attention", "embedding"]
PartName = Literal[NetworkPart, "head"]

RESUME_MAY_CHANGE = frozenset(
    {
        *("data.workers", "data.cache_on_device", "log_every", "checkpoint_every", "checkpoint_async"),
        *("keep_checkpoints", "max_nonfinite_steps", "timeout_minutes", "validation.sets"),
    }
)
"""Keys that do not affect the trained model: a run may be resumed with other values."""


def matches_any(key: str, keys: Collection[str]) -> bool:
    """Checks if a dotted key, or a section that contains it, is in `keys`."""
    return any(f"{key}.".startswith(f"{section}.") for section in keys)


def is_external_ref(name: str) -> bool:
    """Checks if a stage reference is the FOLDER/STAGE of another run."""
    return "/" in name


class ModelConfig(StrictModel):
    """Network of all stages: `backbone`, and `dim` values of the embedding.

    `width` multiplies the channels of `mobilefacenet`: 1, 2 (`mbf` in arcface_torch, the default) or 4 (`mbf_large`);
    other backbones have one width. `pretrained` is a weights file with the names of torchvision or arcface_torch.
    """

    # Validating the default would import torch with this module.
    backbone: Annotated[str, BACKBONES.name_choice()] = Field("resnet50", validate_default=False)
    width: int | None = Field(None, validate_default=False)
    dim: int = Field(512, ge=1)
    pretrained: Path | None = None

    @field_validator("width")
    @classmethod
    def _backbone_has_the_width(cls, width: int | None, info: ValidationInfo) -> int | None:
        if width is not None and "backbone" in info.data:
            try:
                BACKBONES[info.data["backbone"]].at_width(width)
            except UserError as error:
                raise custom_error("not_allowed", str(error)) from None
        return width


class OptimConfig(StrictModel):
    """Stochastic gradient descent; each stage multiplies `lr` for its parts by `lr_mult`.

    `momentum`, `nesterov` and `weight_decay` are those of torch.optim.SGD. `fused` updates the weights by one kernel
    that also skips steps which are not finite; without it results differ by rounding, and the host waits for the device
    in every step. A step uses `batch` images of all processes, in `accumulate` micro-batches that limit the memory use.
    """

    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    fused: bool = True
    batch: int = Field(128, ge=2)
    accumulate: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "OptimConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs momentum > 0; raise momentum or remove nesterov")
        return self

    @model_validator(mode="after")
    def _micro_batches_have_two_images(self) -> "OptimConfig":
        if self.batch < 2 * self.accumulate:
            raise ValueError(
                f"batch: {self.batch} is too small for accumulate: {self.accumulate}; a micro-batch needs 2 images, "
                "raise batch or lower accumulate"
            )
        return self


class LrMultipliers(StrictModel):
    """Multipliers of `optim.lr` for the `network`, the `head` and the centroids of the `memory`.

    0 keeps the weights but still updates batch-norm statistics. The last block of the backbone, and all that follows
    it in the network, has the multiplier of `network`; each earlier block has that of the next one times `layer_decay`.
    """

    network: float = Field(1.0, ge=0)
    head: float = Field(1.0, ge=0)
    memory: float = Field(1.0, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)


class ScheduleConfig(StrictModel):
    """Learning rate schedule of a stage, after a linear warm-up.

    `name` is its form: `step` multiplies by `gamma` every `step_size` epochs, `multistep` at `milestones`, fractions of
    the stage's epochs, or instead after the numbers of epochs in `at`, of which those after the stage's end have no
    effect; `cosine` decays to 0; `constant`. The rate rises from 0 over the first `warmup_epochs`.
    """

    name: Literal["step", "multistep", "cosine", "constant"] = "step"
    step_size: int = Field(10, ge=1)
    milestones: tuple[Fraction, ...] = (0.8, 0.9)
    at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)

    @model_validator(mode="wrap")
    @classmethod
    def _take_milestones_or_epochs(cls, values: Any, validate: Callable[[Any], Self]) -> Self:
        """Replaces the default milestones if epochs are given."""
        if not isinstance(values, Mapping) or not values.get("at"):
            return validate(values)
        if values.get("milestones"):
            raise ValueError("at: the epochs of `at` replace milestones; use one of the two keys, or set at: []")
        schedule = validate({**values, "milestones": ()})
        if schedule.name != "multistep":
            raise ValueError(f"at: only the schedule multistep has drops, not {schedule.name}; remove the key")
        if list(schedule.at) != sorted(set(schedule.at)):
            raise ValueError(f"at: {list(schedule.at)} must be in ascending order")
        return schedule


_Pixels = Annotated[int, Field(ge=0)]


class BranchesConfig(StrictModel):
    """A network of `count` branches that share the layers up to and including `split`.

    `last_block` shares all but the last residual block; `batch_norm` and `conv` share everything, and a branch is one
    such layer on the last feature map. Branched layers have `width` times their channels.

    `regions` gives each branch a part of the image, [left, top, right, bottom] in pixels with right and bottom
    excluded, resized to `region_size` (height and width); the branches then share nothing (`split: none`).
    """

    count: int = Field(3, ge=2)
    split: Literal["none", "layer1", "layer2", "layer3", "last_block", "batch_norm", "conv"] = "layer1"
    width: float = Field(1.0, ge=0.5, le=1)
    regions: tuple[tuple[_Pixels, _Pixels, _Pixels, _Pixels], ...] = ()
    region_size: tuple[ImageSide, ImageSide] | None = None

    @model_validator(mode="after")
    def _width_is_of_whole_layers(self) -> "BranchesConfig":
        if self.width != 1 and not self.split.startswith("layer"):
            raise ValueError(f"width: applies only to splits at a layer, not to {self.split}; remove it")
        return self

    @model_validator(mode="after")
    def _regions_fit_the_branches(self) -> "BranchesConfig":
        if bool(self.regions) != (self.region_size is not None):
            raise ValueError("regions and region_size: give both, or neither")
        if not self.regions:
            return self
        if self.split != "none":
            raise ValueError(
                f"regions: branches that see different parts share no layers; set split to none, not {self.split}"
            )
        if len(self.regions) != self.count:
            raise ValueError(f"regions: {len(self.regions)} for {self.count} branches; give one for each branch")
        for left, top, right, bottom in self.regions:
            if left >= right or top >= bottom:
                raise ValueError(f"regions: [{left}, {top}, {right}, {bottom}] is empty; give left, top, right, bottom")
        return self


class MethodSettings(NamedSettings):
    """Base class of the settings of methods."""

    @property
    def num_teachers(self) -> range:
        """Allowed numbers of teachers, by default 0 only."""
        return range(1)

    @property
    def needs_trained_network(self) -> bool:
        """The method begins with features that only a trained network gives."""
        return False

    def teacher_error(self, stage: "StageConfig") -> str | None:
        """Returns the reason why a model trained by that stage cannot be a teacher, as a clause, or None."""
        return None

    def counts_error(self, counts_C: Iterable[int]) -> str | None:
        """Returns the reason why classes with these numbers of training images cannot be trained on, or None."""
        return None


class SecondStageSettings(MethodSettings):
    """Settings of a method that needs the model of an earlier stage; `post_hoc` methods take no training steps."""

    post_hoc: ClassVar[bool] = False


MethodConfig = Annotated[MethodSettings, METHODS.choice()]


class StageConfig(StrictModel):
    """One stage: `method`, initial weights, teachers, network parts, optimiser and `schedule`.

    `name` is that of its folder. `embedding` is the layer that makes the embedding of the feature map: a linear layer
    with batch norm, one with ReLU, a global depthwise convolution (`gdc`), or none; by default the backbone's, which is
    `gdc` for `mobilefacenet` and `linear_bn` for all others. `lr_mult` multiplies the learning rate of parts.
    `init_from` is an earlier stage of the run, or FOLDER/STAGE of another run; so are `teachers`, whose trained models
    are frozen. `average_with: {given: 0.5}` makes the initial network the weighted mean of that stage's and of
    `init_from`'s, which has the rest of the weight: of a fine-tuned network and the one it was tuned from, as WiSE-FT
    (Wortsman et al., CVPR 2022). `attention: true` is OLTR's modulated attention, `spatial` its spatial attention
    alone. `optim` replaces the run's. `freeze` keeps the weights of parts; `batch_norm: frozen` keeps the running
    statistics of the network and normalises by them. Multi-expert methods need `branches`. Methods without training
    steps need `epochs: 0`. `keep` is the saved epoch: the best by validation accuracy (the last one without validation
    data), or the last.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    method: MethodConfig
    epochs: int = Field(ge=0)
    init_from: str | None = None
    average_with: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    attention: bool | Literal["spatial"] = False
    embedding: Annotated[str, EMBEDDINGS.name_choice()] | None = None
    branches: BranchesConfig | None = None
    optim: OptimConfig | None = None
    lr_mult: LrMultipliers = LrMultipliers()
    schedule: ScheduleConfig = ScheduleConfig()
    freeze: tuple[PartName, ...] = ()
    batch_norm: Literal["train", "frozen"] = "train"
    keep: Literal["best", "last"] = "best"

    @property
    def initial_stages(self) -> tuple[str, ...]:
        """The stages whose networks the initial network is made of, that of `init_from` first."""
        return () if self.init_from is None else (self.init_from, *self.average_with)

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> "StageConfig":
        allowed = self.method.num_teachers
        if len(self.teachers) not in allowed:
            number = str(allowed[0]) if len(allowed) == 1 else f"{allowed[0]} to {allowed[-1]}"
            num_teachers = len(self.teachers)
            raise ValueError(f"teachers: {self.method.name} with these settings needs {number}, {num_teachers} given")
        if self.average_with and self.init_from is None:
            raise ValueError("average_with: needs init_from, which has the rest of the weight; name its stage")
        if (total := sum(self.average_with.values())) >= 1:
            raise ValueError(
                f"average_with: the weights add up to {total:g}, which leaves none to init_from; lower them"
            )
        if isinstance(self.method, SecondStageSettings):
            if self.init_from is None:
                raise ValueError(f"init_from: {self.method.name} needs a trained model; name its stage")
            if self.method.post_hoc and self.epochs:
                raise ValueError(f"epochs: {self.method.name} takes no steps; set it to 0")
        return self


class ValidationConfig(StrictModel):
    """Verification during training: `sets` of pairs by name, .bin files or lists.

    The flip-averaged 10-fold accuracy on each is logged as `verification_<name>`; it does not select the best epoch.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], Path] = Field(default_factory=dict)


class TrainConfig(StrictModel):
    """Configuration of `facelt train`.

    `out` is the run folder, `seed` that of weights, samples and augmentation. Without CUDA the `device` is `cpu`.
    The `stages` run in order on the same `data` with the network of `model`, and `validation` adds sets of pairs.
    Losses are logged every `log_every` steps.

    `precision: bf16` applies to the network; heads, memory and losses stay in float32. `compile` trains the network
    through torch.compile, which needs a C++ compiler, on a GPU also Triton; results differ by rounding. `optim.batch`
    is the global batch of all processes. A checkpoint is written every `checkpoint_every` steps and after each epoch;
    the newest `keep_checkpoints` are kept until the stage is finished. `checkpoint_async` writes them in the
    background, from a copy in host memory.

    A step with a non-finite loss or gradient is skipped and its images are listed in the run's folder `nonfinite`; more
    than `max_nonfinite_steps` such steps stop the stage. A process stops if it waits for another one for more than
    `timeout_minutes`.
    """

    out: Path
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
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

    @field_validator("stages")
    @classmethod
    def _have_an_embedding(cls, stages: tuple[StageConfig, ...], info: ValidationInfo) -> tuple[StageConfig, ...]:
        """Replaces an embedding that is not given by that of the backbone."""
        if "model" not in info.data:
            return stages
        default = {"embedding": BACKBONES[info.data["model"].backbone].embedding}
        return tuple(stage if stage.embedding else stage.model_copy(update=default) for stage in stages)

    @model_validator(mode="after")
    def _stage_references_exist(self) -> "TrainConfig":
        earlier: dict[str, StageConfig] = {}
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"stages: the name {stage.name!r} occurs twice")
            allowed = ", ".join([*earlier, "the FOLDER/STAGE of another run"])
            for source in stage.initial_stages:
                if source not in earlier and not is_external_ref(source):
                    raise ValueError(f"stages: {stage.name!r} starts from {source!r}; allowed: {allowed}")
            if stage.method.needs_trained_network and stage.init_from is None and self.model.pretrained is None:
                raise ValueError(
                    f"stages: {stage.name!r} takes class means of a trained network and has none; set init_from, "
                    "model.pretrained, or classifier_init: random"
                )
            for teacher in stage.teachers:
                if teacher not in earlier and not is_external_ref(teacher):
                    raise ValueError(f"stages: {stage.name!r} has the teacher {teacher!r}; allowed: {allowed}")
                if teacher in earlier and (reason := stage.method.teacher_error(earlier[teacher])):
                    raise ValueError(f"stages: {stage.name!r} has the teacher {teacher!r}, which {reason}")
            earlier[stage.name] = stage
        return self
