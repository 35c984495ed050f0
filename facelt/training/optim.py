"""Optimisers, learning-rate schedules, and frozen parameters. D feature, K rows of a sparse gradient."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from facelt.config.train import OptimConfig, ScheduleConfig, StageConfig
from facelt.errors import UserError
from facelt.heads.memory import first_of_class
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

    The momentum buffer is dense, so it is saved and sharded like any other. `found_inf` is as torch's fused optimisers
    take it: a float scalar on the device, other than 0 for a step that is to change no bit.
    """

    found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient, unless `found_inf` is set.

        Fused kernels read it on the device. The others of torch do not take it, so the host reads it here.
        """
        if not self.defaults["fused"] and self.found_inf is not None:
            if self.found_inf.item():
                return
            self.found_inf = None
        self._prepare_for_fused_kernels()
        sparse = {
            parameter: group
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        }
        for parameter, group in sparse.items():
            self._update_rows(parameter, parameter.grad, group)
            parameter.grad = None  # the parent class skips it
        super().step()

    def _prepare_for_fused_kernels(self) -> None:
        """Creates missing momentum buffers as zeros, and gives gradients the strides of their parameters.

        torch's fused kernel would leave the buffers of a skipped first step undefined. With other strides it adds wrong
        elements on a CPU and fails on a GPU; compiled networks have such gradients.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if group["momentum"] and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                if not gradient.is_sparse and gradient.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)

    def _update_rows(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict) -> None:
        row_K, first_K, gradient_KD = _row_sums(gradient)
        before_KD = parameter[row_K]
        # A row that occurs several times has the same values each time, so that it may be written as often.
        gradient_KD = gradient_KD[first_K].add_(before_KD, alpha=group["weight_decay"])
        direction_KD = gradient_KD
        if group["momentum"]:
            momentum = self.state[parameter]["momentum_buffer"]
            momentum_KD = momentum[row_K]
            direction_KD = gradient_KD.add(momentum_KD, alpha=group["momentum"])
            momentum.index_copy_(0, row_K, self._undo_if_found_inf(direction_KD, momentum_KD))
            if group["nesterov"]:
                direction_KD = gradient_KD.add_(direction_KD, alpha=group["momentum"])
        after_KD = before_KD.add(direction_KD, alpha=-group["lr"])
        parameter.index_copy_(0, row_K, self._undo_if_found_inf(after_KD, before_KD))

    def _undo_if_found_inf(self, after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Returns `after`, set to `before` in place if `found_inf` is set."""
        return after if self.found_inf is None else torch.where(self.found_inf == 0, after, before, out=after)


def _row_sums(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the rows of a sparse gradient, the first occurrence of each, and the sums of the rows there; 0 elsewhere.

    Micro-batches may name the same row. `coalesce` would count the distinct ones, for which the host waits.
    """
    (row_K,), value_KD = gradient._indices(), gradient._values()
    first_K = first_of_class(row_K)
    return row_K, first_K, torch.zeros_like(value_KD).index_add_(0, first_K, value_KD)


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
                fused=optim.fused,
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

    def step(self, context: StepContext, found_inf: torch.Tensor | None = None) -> float:
        """Makes one update at this step's learning rates; returns the head's, or the network's if no head is trained.

        That of the network is the rate of its last block. `found_inf`, a float32 scalar on the device, is 0 unless the
        update is to be skipped.
        """
        factor = learning_rate_factor(self.schedule, context)
        shown_lr = 0.0
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * group["base_lr"]
                shown_lr = shown_lr if group["name"] == "memory" else group["lr"]
            optimiser.found_inf = found_inf
            optimiser.step()
        return shown_lr

    def gradient_norm(self) -> torch.Tensor:
        """Returns the L2 norm of all gradients of this rank, a scalar; non-finite if any gradient is."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        values = [_row_sums(gradient)[-1] if gradient.is_sparse else gradient for gradient in gradients]
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
