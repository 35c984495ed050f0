"""Work of a recipe: the floating-point operations of each stage, from its steps and its network.

A training step costs three forward passes, one on a frozen network a single pass.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facelt.config.train import StageConfig, TrainConfig
from facelt.distributed.launch import resolve_device
from facelt.errors import UserError
from facelt.inference.model import build_method
from facelt.training.loaders import build_sampler
from facelt.training.optim import freeze

_TRAINING_PASSES = 3
_TIMED_STEPS = 3
_operations: dict[tuple, float] = {}
"""Operations of networks that were counted."""


@dataclass(frozen=True)
class StageWork:
    """Operations of a stage and its number of steps."""

    operations: float
    steps: int


@dataclass(frozen=True)
class RecipeWork:
    """Work of each stage of a recipe, and the operations of testing its last one."""

    stages: tuple[StageWork, ...]
    testing: float


class WorkTable:
    """Work of recipes, each measured once; data are opened once for the recipes that share them."""

    def __init__(self) -> None:
        self._works: dict[str, RecipeWork | UserError] = {}

    def measure(self, configs: Iterable[TrainConfig]) -> None:
        """Measures the work of recipes. Raises UserError if none of them can be trained on its data."""
        groups: dict[tuple[str, int], list[TrainConfig]] = {}
        for config in configs:
            if _key(config) not in self._works:
                groups.setdefault((config.data.model_dump_json(), config.seed), []).append(config)
        for group in groups.values():
            self._measure_group(group)
        errors = [work for work in self._works.values() if isinstance(work, UserError)]
        if errors and len(errors) == len(self._works):
            raise errors[0]

    def __getitem__(self, config: TrainConfig) -> RecipeWork:
        """Returns the work of a recipe that was measured. Raises UserError if it cannot be trained on its data."""
        work = self._works[_key(config)]
        if isinstance(work, UserError):
            raise work
        return work

    def _measure_group(self, configs: list[TrainConfig]) -> None:
        """Measures recipes with the same data."""
        data = None
        for config in configs:
            try:
                data = config.data.open(config.seed) if data is None else data
                self._works[_key(config)] = _recipe_work(config, data)
            except UserError as error:
                self._works[_key(config)] = error


def _key(config: TrainConfig) -> str:
    return config.model_dump_json(exclude={"out"})


def _recipe_work(config: TrainConfig, data) -> RecipeWork:
    """Returns the work of a recipe on opened data. Raises UserError if it cannot be trained on them."""
    counts = data.train_counts.tolist()
    validation = data.evaluation.get("validation")
    per_image: dict[str, float] = {}
    stages = []
    for stage in config.stages:
        if reason := stage.method.counts_error(counts):
            raise UserError(f"stage {stage.name}: {reason}")
        with torch.device("meta"):
            method = build_method(config, stage, data.num_classes)
        freeze(method, stage.freeze)
        per_image[stage.name] = _forward_operations(config, stage, method.network, 1)
        steps, step = _steps(config, stage, method.sampler_specs(), data), 0.0
        if steps:
            inputs = len(method.sampler_specs())
            is_trained = any(parameter.requires_grad for parameter in method.network.parameters())
            passes = _TRAINING_PASSES if is_trained else 1
            teachers = sum(per_image.get(name, per_image[stage.name]) for name in stage.teachers)
            step = passes * _forward_operations(config, stage, method.network, inputs) + inputs * teachers
        images = stage.epochs * (0 if validation is None else len(validation.members))
        if not stage.epochs:  # a pass over the training images
            images = len(data.train.members)
        batch = (stage.optim or config.optim).batch
        stages.append(StageWork(steps * batch * step + images * per_image[stage.name], steps))
    tested = len(data.evaluation["test"].members) if "test" in data.evaluation else 0
    return RecipeWork(tuple(stages), tested * per_image[config.stages[-1].name])


def _steps(config: TrainConfig, stage: StageConfig, streams, data) -> int:
    if not stage.epochs:
        return 0
    batch = (stage.optim or config.optim).batch
    samplers = [
        build_sampler(stream, data, batch, config.seed, stage.epochs, drop_last=config.data.drop_last)
        for stream in streams
    ]
    return stage.epochs * min(sampler.steps_per_epoch for sampler in samplers)


def _forward_operations(config: TrainConfig, stage: StageConfig, network: nn.Module, inputs: int) -> float:
    """Returns the operations of one image of each of `inputs` batches: each has a branch, or the whole network."""
    key = (config.model, config.data.image_size, stage.attention, stage.embedding, stage.branches, inputs)
    if key not in _operations:
        images = [torch.empty(1, 3, *config.data.image_size, device="meta") for _ in range(inputs)]
        calls = [images] if inputs == network.branches else [[image] for image in images]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for call in calls:
                network.eval()(*call)
        _operations[key] = float(counter.get_total_flops())
    return _operations[key]


def time_training(config: TrainConfig) -> tuple[float, float]:
    """Trains the first stage's network for a few steps on random images.

    Returns the seconds of an operation, as the work of recipes counts them, and the images per second. Raises UserError
    if there is no such device.
    """
    device, stage = resolve_device(config.device), config.stages[0]
    batch = (stage.optim or config.optim).batch
    with torch.random.fork_rng(devices=[]):
        method = build_method(config, stage, 2).to(device, memory_format=torch.channels_last)
        image_B3HW = torch.rand(batch, 3, *config.data.image_size, device=device)
    method.bf16 = config.precision == "bf16"
    times = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        method.features(image_B3HW).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = sum(times[1:]) / _TIMED_STEPS  # the first step also allocates memory
    operations = _TRAINING_PASSES * batch * _forward_operations(config, stage, method.to("meta").network, 1)
    return seconds / operations, batch / seconds
