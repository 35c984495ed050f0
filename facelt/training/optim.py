"""Optimisers and their learning rates: one for network and head, one of its own for the memory.

D feature, K rows that a sparse gradient names.

Parts that keep their weights.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from facelt.config.train import OptimConfig, ScheduleConfig, StageConfig
from facelt.methods.base import Method, StepContext


def learning_rate_factor(schedule: ScheduleConfig, progress: StepContext) -> float:
    """What the base learning rate is multiplied by at this step."""
    epoch = progress.epoch + progress.step / progress.steps
    if epoch < schedule.warmup_epochs:
        # The first step learns too, and the first one after the warm-up is at the full rate.
        return (epoch + 1 / progress.steps) / (schedule.warmup_epochs + 1 / progress.steps)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "milestones":
        # One part in a thousand of an epoch is for shares that floating point rounds down.
        return schedule.factor ** sum(progress.epoch + 1e-3 >= share * progress.epochs for share in schedule.at)
    if schedule.name == "cosine":
        done = (epoch - schedule.warmup_epochs) / (progress.epochs - schedule.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * done))
    return schedule.factor ** (progress.epoch // schedule.every)


class RowSGD(torch.optim.SGD):
    """SGD that moves of a parameter with a sparse gradient only the rows it names, their decay and momentum included.

    The momentum is kept for all rows, so it is saved and dealt out to ranks as any other.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        sparse = {
            parameter: group
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        }
        for parameter, group in sparse.items():
            self._move_rows(parameter, parameter.grad.coalesce(), group)
            parameter.grad = None  # moved already: the parent passes over it
        super().step()

    def _move_rows(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict) -> None:
        (row_K,) = gradient.indices()
        gradient_KD = gradient.values().add(parameter[row_K], alpha=group["weight_decay"])
        direction_KD = gradient_KD
        if group["momentum"]:
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            direction_KD = gradient_KD.add(state["momentum_buffer"][row_K], alpha=group["momentum"])
            state["momentum_buffer"].index_copy_(0, row_K, direction_KD)
            if group["nesterov"]:
                direction_KD = gradient_KD.add_(direction_KD, alpha=group["momentum"])
        parameter.index_add_(0, row_K, direction_KD, alpha=-group["lr"])


class Optimisers:
    """SGD over a method's parameter groups, stepped together."""

    def __init__(self, method: Method, optim: OptimConfig, stage: StageConfig) -> None:
        self.schedule = stage.schedule
        groups = {
            part: [parameter for parameter in parameters if parameter.requires_grad]
            for part, parameters in method.parameter_groups().items()
        }
        shares = stage.lr_share.model_dump()
        own = {"memory": groups.pop("memory", [])}
        self._optimisers = [
            RowSGD(
                [
                    {"params": parameters, "name": part, "base_lr": optim.lr * shares[part]}
                    for part, parameters in parts.items()
                    if parameters
                ],
                lr=optim.lr,
                momentum=optim.momentum,
                nesterov=optim.nesterov,
                weight_decay=optim.weight_decay,
            )
            for parts in (groups, own)
            if any(parts.values())
        ]

    def groups(self) -> list[list[dict]]:
        """The parameter groups of each optimiser."""
        return [optimiser.param_groups for optimiser in self._optimisers]

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is optimised."""
        return [parameter for groups in self.groups() for group in groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def step(self, progress: StepContext) -> float:
        """One update at this step's learning rates; returns the head's."""
        factor = learning_rate_factor(self.schedule, progress)
        shown = 0.0
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * group["base_lr"]
                shown = group["lr"] if group["name"] == "head" else shown
            optimiser.step()
        return shown

    def gradient_norm(self) -> torch.Tensor:
        """The length of all this rank's gradients together, a scalar: not finite when any of them is not."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        return torch.nn.utils.get_total_norm(values)

    def momentum(self) -> dict[nn.Parameter, torch.Tensor]:
        """The running direction of every parameter that has one yet."""
        return {
            parameter: state["momentum_buffer"]
            for optimiser in self._optimisers
            for parameter, state in optimiser.state.items()
            if state.get("momentum_buffer") is not None
        }

    def allocate_momentum(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes room for what `momentum` returned, to be filled."""
        wanted = set(parameters)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                for parameter in wanted.intersection(group["params"]):
                    optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def freeze(method: Method, parts: Iterable[str]) -> None:
    """No gradients into these parts: the network's by their names, and `head`."""
    for part in parts:
        parameters = method.parameter_groups()["head"] if part == "head" else getattr(method.network, part).parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)


def as_teacher(method: Method) -> Method:
    """The whole method as a teacher: in evaluation mode, no weight of it moves."""
    return method.eval().requires_grad_(False)
