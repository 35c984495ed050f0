"""Optimisers and their learning rates: one for network and head, one of its own for the memory."""

import math

import torch
from torch import nn

from facelt.config import OptimConfig, ScheduleConfig, StageConfig
from facelt.methods import Method, Progress


def learning_rate_factor(schedule: ScheduleConfig, progress: Progress) -> float:
    """What the base learning rate is multiplied by at this step."""
    epoch = progress.epoch + progress.step / progress.steps
    if epoch < schedule.warmup_epochs:
        # The first step learns too, and the first one after the warm-up is at the full rate.
        return (epoch + 1 / progress.steps) / (schedule.warmup_epochs + 1 / progress.steps)
    if schedule.name == "cosine":
        done = (epoch - schedule.warmup_epochs) / (progress.epochs - schedule.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * done))
    return schedule.factor ** (progress.epoch // schedule.every)


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
            torch.optim.SGD(
                [
                    {"params": parameters, "name": part, "base_lr": optim.lr * shares[part]}
                    for part, parameters in parts.items()
                    if parameters
                ],
                lr=optim.lr,
                momentum=optim.momentum,
                weight_decay=optim.weight_decay,
            )
            for parts in (groups, own)
            if any(parts.values())
        ]

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is optimised."""
        groups = (group for optimiser in self._optimisers for group in optimiser.param_groups)
        return [parameter for group in groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def step(self, progress: Progress) -> float:
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
        """The length of all gradients together, a scalar: not finite when any of them is not."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def state_dict(self) -> list[dict]:
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)
