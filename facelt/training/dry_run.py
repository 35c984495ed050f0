"""Dry run: memory and traffic of every stage on one of W processes, computed on fake tensors.

Fake tensors have shapes but no values, so that a million identities need no memory, and a fake process group stands for
the other processes. The operators are those of the CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facelt.config.train import OptimConfig, StageConfig, TrainConfig, is_external_ref
from facelt.distributed.comm import is_distributed, world_size
from facelt.errors import UserError
from facelt.heads.memory import IdentityMemory
from facelt.inference.model import build_method
from facelt.methods.base import FrozenBackboneMethod, Method, PostHocMethod, StepContext, TrainBatch
from facelt.training.loaders import require_enough_images
from facelt.training.optim import Optimisers, as_teacher, freeze

# What fake tensors raise where a step depends on values.
_BY_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
_FIRST = StepContext(epoch=0, epochs=1, step=0, steps=1)
# Training images of a class if the data are absent: 1 to 200, so that every shot band has classes.
_MOST_IMAGES = 200


@dataclass(frozen=True)
class StageCost:
    """Bytes of a stage on the first rank, which has the most identities.

    `network` and `head` are parameters and buffers, `memory` the identity centroids, `momentum` the state of the
    optimiser. `activations` is what a micro-batch of `images` keeps from forward to backward. `exchanged` is gathered
    or summed over the ranks in a step, as the formulas in docs/scaling.md count it. The last three are None for a stage
    without steps, and for one whose steps depend on values.
    """

    stage: str
    identities: int
    images: int
    network: int
    head: int
    memory: int
    momentum: int
    gradients: int | None = None
    activations: int | None = None
    exchanged: int | None = None

    @property
    def total(self) -> int | None:
        """The sum of all memory, None without activations."""
        if self.activations is None or self.gradients is None:
            return None
        return self.network + self.head + self.memory + self.momentum + self.gradients + self.activations


def dry_run(config: TrainConfig, processes: int = 1, identities: int | None = None) -> list[StageCost]:
    """Returns the cost of every stage on one of `processes` ranks; nothing is trained or written.

    With `identities` the data need not exist. Raises UserError if they cannot be opened otherwise, and for stages that
    do not fit them.
    """
    counts_C = _class_counts(config, identities)
    for stage in config.stages:
        if reason := stage.method.counts_error(counts_C.tolist()):
            raise UserError(f"stages: {stage.name!r}: {reason}")
        require_enough_images(stage.optim or config.optim, processes, torch.device(config.device))
    with _fake_ranks(processes):
        return [_stage_cost(config, stage, counts_C) for stage in config.stages]


def _class_counts(config: TrainConfig, identities: int | None) -> torch.Tensor:
    if identities is not None:
        return torch.from_numpy(np.arange(identities) % _MOST_IMAGES + 1)
    try:
        num_classes, label_N_by_split = config.data.split_labels(config.seed)
    except UserError as error:
        raise UserError(f"{error}; without the data, give their number of identities by --identities") from None
    return torch.from_numpy(np.bincount(label_N_by_split["train"], minlength=num_classes))


@contextmanager
def _fake_ranks(world: int) -> Iterator[None]:
    """Makes this process the first of `world` ranks; collectives copy its own values."""
    if dist.is_torchelastic_launched() or is_distributed():
        raise UserError("--dry-run needs one process: run it without torchrun, and give their number by --processes")
    if world == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class _FakeTensors(TorchDispatchMode):
    """Makes all tensors fake but for those that the host knows: class counts, labels, and random integers.

    `exchanged` counts the bytes of all collectives.
    """

    _INTEGERS = ("arange", "randint", "randperm")

    def __init__(self) -> None:
        super().__init__()
        self.exchanged = 0
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> "_FakeTensors":
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        tensors = [value for value in tree_leaves((arguments, options)) if isinstance(value, torch.Tensor)]
        if function.namespace == "c10d":
            self.exchanged += max(value.nbytes for value in tensors)
        is_integer = options.get("dtype") == torch.int64 or function.overloadpacket.__name__ in self._INTEGERS
        is_known = not any(isinstance(value, FakeTensor) for value in tensors) if tensors else is_integer
        if not is_known:
            return function(*arguments, **options)
        with unset_fake_temporarily():
            return function(*arguments, **options)

    def move(self, module: nn.Module) -> None:
        """Makes the remaining tensors of a module fake."""
        for child in module.modules():
            for name, value in child._parameters.items():
                if value is not None and not isinstance(value, FakeTensor):
                    fake = self.fake.from_tensor(value.detach())
                    child._parameters[name] = nn.Parameter(fake, value.requires_grad)
            for name, value in child._buffers.items():
                if value is not None and not isinstance(value, FakeTensor):
                    child._buffers[name] = self.fake.from_tensor(value)


def _stage_cost(config: TrainConfig, stage: StageConfig, counts_C: torch.Tensor) -> StageCost:
    optim, num_classes = stage.optim or config.optim, len(counts_C)
    tensors = _FakeTensors()
    with tensors:
        stages = [stage, *(_teacher_stage(config, stage, name) for name in stage.teachers)]
        with FakeCopyMode(tensors.fake):
            method, *teachers = (build_method(config, built, num_classes, counts_C) for built in stages)
        freeze(method, stage.freeze)
        teachers = [as_teacher(teacher) for teacher in teachers]
        for part in (method, *teachers):
            tensors.move(part)
            part.bf16 = config.precision == "bf16"
        method.set_teachers(teachers)
        method.train()
        if stage.batch_norm == "frozen":
            method.network.eval()
        trained = Optimisers(method, optim, stage).parameters() if stage.epochs else []
        network, memory = _bytes_of([method.network]), _bytes_of(_memories(method))
        costs = {
            "identities": -(-num_classes // world_size()),
            "images": -(-optim.batch // (world_size() * optim.accumulate)),
            "network": network,
            "head": _bytes_of([method]) - network - memory,
            "memory": memory,
            "momentum": sum(value.nbytes for value in trained) if optim.momentum else 0,
        }
        if stage.epochs and not isinstance(method, PostHocMethod):
            with suppress(*_BY_VALUES):
                costs |= _step_costs(method, config, optim, costs["images"], num_classes, tensors)
    return StageCost(stage.name, **costs)


def _teacher_stage(config: TrainConfig, stage: StageConfig, name: str) -> StageConfig:
    if is_external_ref(name):
        raise UserError(f"stages: {stage.name!r} has the teacher {name!r}: --dry-run knows only stages of this run")
    return next(other for other in config.stages if other.name == name)


def _step_costs(
    method: Method, config: TrainConfig, optim: OptimConfig, images: int, num_classes: int, tensors: _FakeTensors
) -> dict[str, int]:
    """Returns the bytes of gradients and activations of a micro-batch, and those exchanged in a step."""
    height, width = config.data.image_size
    label_B = torch.arange(images) % num_classes
    batches = [TrainBatch(torch.empty(images, 3, height, width), label_B) for _ in method.sampler_specs()]
    # A step on a frozen network may use what the pass over the training set has stored.
    if isinstance(method, FrozenBackboneMethod) and type(method).observe is not Method.observe:
        with torch.no_grad(), suppress(*_BY_VALUES):
            method.observe(batches[0])
            method.end_dataset_pass()
        tensors.exchanged = 0
    method.begin_epoch(_FIRST, {})
    saved: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        saved[value.untyped_storage()._cdata] = value
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        output = method.step(batches, _FIRST)
    owned = {value.untyped_storage()._cdata for value in _tensors_of([method, *method.teachers])}
    activations = sum(value.untyped_storage().nbytes() for key, value in saved.items() if key not in owned)
    if output.loss.requires_grad:
        output.loss.backward()
    output.after(torch.tensor(True))
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    summed = sum(value.grad.nbytes for value in method.network.parameters() if value.grad is not None)
    return {
        "gradients": sum(value._values().nbytes if value.is_sparse else value.nbytes for value in gradients),
        "activations": activations,
        # DDP sums the network's gradients once a step.
        "exchanged": optim.accumulate * tensors.exchanged + (summed if is_distributed() else 0),
    }


def _memories(method: Method) -> list[IdentityMemory]:
    return [module for module in method.modules() if isinstance(module, IdentityMemory)]


def _bytes_of(modules: Sequence[nn.Module]) -> int:
    return sum(value.nbytes for value in _tensors_of(modules))


def _tensors_of(modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
