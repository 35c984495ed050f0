"""The tensors and facts a stage is saved as."""

from collections.abc import Mapping
from typing import Any

import torch

from facelt.engine.optimisation import Optimisers
from facelt.errors import UserError
from facelt.methods import Method
from facelt.parallel import ClassRange, rank, split_entries, world


class StageState:
    """Method, momentum and random generators by name: `method.*`, `momentum.*`, `random.<rank>`."""

    def __init__(self, method: Method, optimisers: Optimisers, device: torch.device) -> None:
        self.method = method
        self.optimisers = optimisers
        self.device = device
        self._names = {parameter: name for name, parameter in method.named_parameters()}

    def facts(self) -> dict[str, Any]:
        """What `targets` needs to know."""
        return {
            "momentum": sorted(self._names[parameter] for parameter in self.optimisers.momentum()),
            "world": world(),
            "device": self.device.type,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as it is now; method and momentum are the live tensors."""
        momentum = self.optimisers.momentum().items()
        return {
            **{f"method.{name}": value for name, value in self.method.state_dict().items()},
            **{f"momentum.{self._names[parameter]}": value for parameter, value in momentum},
            **{f"{kind}.{rank()}": state for kind, state in self._random().items()},
        }

    def targets(self, facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Tensors to be filled from a checkpoint of these facts; then `take_random` of them. Raises UserError."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        unknown = set(facts["momentum"]) - parameters.keys()
        if unknown:
            raise UserError(f"the checkpoint does not belong to this run: it has {min(unknown)}, this model has not")
        self.optimisers.begin_momentum(parameters[name] for name in facts["momentum"])
        tensors = self.tensors()
        # On more ranks than it was saved on, the new ones go on with the generators they began with.
        same = rank() < facts["world"] and facts["device"] == self.device.type
        for kind, state in self._random().items():
            name = f"{kind}.{rank()}"
            if same:
                tensors[name] = torch.empty_like(state)
            else:
                del tensors[name]
        return tensors

    def split(self) -> dict[str, ClassRange]:
        """The tensors that are this rank's rows of all classes."""
        own = split_entries(self.method)
        return {f"{kind}.{name}": classes for kind in ("method", "momentum") for name, classes in own.items()}

    def take_random(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Sets the generators to what was read."""
        if f"random.{rank()}" in tensors:
            torch.set_rng_state(tensors[f"random.{rank()}"])
        if f"cuda_random.{rank()}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda_random.{rank()}"], self.device)

    def _random(self) -> dict[str, torch.Tensor]:
        states = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda_random"] = torch.cuda.get_rng_state(self.device)
        return states
