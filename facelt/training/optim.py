"""Optimisers, learning-rate schedules, and frozen parameters. D feature, K rows of a sparse gradient."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from facelt.config.train import OptimConfig, ScheduleConfig, StageConfig
from facelt.errors import UserError
from facelt.methods.base import Method, StepContext
from facelt.models.network import Network, parameters_by_depth


def learning_rate_factor(schedule: ScheduleConfig, context: StepContext) -> float:
    """Returns the factor on the base learning rate at this step."""
    epoch = context.epoch + context.step / context.steps
    if epoch < schedule.warmup_epochs:
        # Linear, above 0 in the first step, and at the full rate in the first step after the warm-up.
        return (epoch + 1 / context.steps) / (schedule.warmup_epochs + 1 / context.steps)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "multistep":
        # 1e-3 epochs of tolerance for fractions that floating point rounds up.
        passed = [context.epoch + 1e-3 >= fraction * context.epochs for fraction in schedule.milestones]
        passed += [context.epoch >= epoch for epoch in schedule.at]
        return schedule.gamma ** sum(passed)
    if schedule.name == "cosine":
        fraction = (epoch - schedule.warmup_epochs) / (context.epochs - schedule.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * fraction))
    return schedule.gamma ** (context.epoch // schedule.step_size)


class RowSGD(torch.optim.SGD):
    """SGD that updates only the rows named by a sparse gradient, including their weight decay and momentum.

    The momentum buffer is dense, so it is saved and sharded like any other.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient."""
        sparse = {
            parameter: group
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        }
        for parameter, group in sparse.items():
            self._update_rows(parameter, parameter.grad.coalesce(), group)
            parameter.grad = None  # the parent class skips it
        super().step()

    def _update_rows(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict) -> None:
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
    """SGD over a method's parameter groups: one optimiser for network and head, one for the memory.

    With `layer_decay` the network has a group for each depth. Raises UserError if that changes no rate.
    """

    def __init__(self, method: Method, optim: OptimConfig, stage: StageConfig) -> None:
        self.schedule = stage.schedule
        groups = {
            part: [parameter for parameter in parameters if parameter.requires_grad]
            for part, parameters in method.parameter_groups().items()
        }
        lr_mult = stage.lr_mult.model_dump()

        def param_groups(part: str, parameters: list[nn.Parameter]) -> list[dict]:
            group = {"params": parameters, "name": part, "base_lr": optim.lr * lr_mult[part]}
            if part == "network" and lr_mult["layer_decay"] < 1:
                return _groups_by_depth(group, method.network, lr_mult["layer_decay"])
            return [group] if parameters else []

        memory = {"memory": groups.pop("memory", [])}
        self._optimisers = [
            RowSGD(
                [group for part, parameters in parts.items() for group in param_groups(part, parameters)],
                lr=optim.lr,
                momentum=optim.momentum,
                nesterov=optim.nesterov,
                weight_decay=optim.weight_decay,
            )
            for parts in (groups, memory)
            if any(parts.values())
        ]

    def groups(self) -> list[list[dict]]:
        """Returns the parameter groups of each optimiser."""
        return [optimiser.param_groups for optimiser in self._optimisers]

    def parameters(self) -> list[nn.Parameter]:
        """Returns every parameter that is optimised."""
        return [parameter for groups in self.groups() for group in groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def step(self, context: StepContext) -> float:
        """Makes one update at this step's learning rates; returns the head's, or the network's if no head is trained.

        That of the network is the rate of its last block.
        """
        factor = learning_rate_factor(self.schedule, context)
        shown_lr = 0.0
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * group["base_lr"]
                shown_lr = shown_lr if group["name"] == "memory" else group["lr"]
            optimiser.step()
        return shown_lr

    def gradient_norm(self) -> torch.Tensor:
        """Returns the L2 norm of all gradients of this rank, a scalar; non-finite if any gradient is."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        return torch.nn.utils.get_total_norm(values)

    def momentum(self) -> dict[nn.Parameter, torch.Tensor]:
        """Returns the momentum buffers that exist so far."""
        return {
            parameter: state["momentum_buffer"]
            for optimiser in self._optimisers
            for parameter, state in optimiser.state.items()
            if state.get("momentum_buffer") is not None
        }

    def allocate_momentum(self, parameters: Iterable[nn.Parameter]) -> None:
        """Creates momentum buffers of these parameters, to be filled from a checkpoint."""
        selected = set(parameters)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                for parameter in selected.intersection(group["params"]):
                    optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups_by_depth(group: dict, network: Network, decay: float) -> list[dict]:
    """Splits the group of the network by depth, the stem first; each has the next one's rate times `decay`."""
    trained, depths = set(group["params"]), parameters_by_depth(network)
    groups = [
        {
            **group,
            "params": [parameter for parameter in parameters if parameter in trained],
            "base_lr": group["base_lr"] * decay ** (len(depths) - depth),
        }
        for depth, parameters in enumerate(depths, start=1)
    ]
    if not any(group["params"] for group in groups[:-1]):
        raise UserError(
            "lr_mult.layer_decay: no block of the backbone before the last one is trained in this stage; remove the key"
        )
    return [group for group in groups if group["params"]]


def freeze(method: Method, parts: Iterable[str]) -> None:
    """Stops gradients into these parts: modules of the network by name, and `head`."""
    for part in parts:
        parameters = method.parameter_groups()["head"] if part == "head" else getattr(method.network, part).parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)


def as_teacher(method: Method) -> Method:
    """Returns the method in evaluation mode without gradients."""
    return method.eval().requires_grad_(False)
