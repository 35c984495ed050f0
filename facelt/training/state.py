"""Training state of a stage: everything that its checkpoints hold."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from facelt.config.train import StageConfig, TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import TrainingData
from facelt.distributed.class_shards import ClassRange, sharded_entries
from facelt.distributed.comm import rank, world_size
from facelt.errors import UserError
from facelt.methods.base import Method, StepContext
from facelt.training.optim import Optimisers

LIBRARIES = ("facelt", "torch", "numpy", "safetensors")
# Metadata that has to be equal for a checkpoint to be resumed, with its name in error messages.
DATA_IDENTITY = {"data_fingerprint": "data fingerprint", "class_map_sha256": "class map"}


class TrainingState:
    """Training state of a stage: position, method, optimisers, random generators, results so far, and provenance.

    `epoch` and `step` are the next ones, from 0. `best` holds the figures of the best epoch, `validation` those of the
    last one. `bad_images` and `nonfinite_steps` count what was left out so far. Tensors are named `method.*`,
    `momentum.*` and `random.<rank>`.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        data: TrainingData,
        method: Method,
        optimisers: Optimisers,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.method, self.optimisers, self.device = method, optimisers, device
        self.epoch = self.step = 0
        self.epochs, self.steps_per_epoch = stage.epochs, steps_per_epoch
        self.best: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.bad_images = BadImageTracker(config.data.max_bad_images)
        self.nonfinite_steps = 0
        self.class_map = config.data.class_map(data.num_classes)
        self._provenance = {
            "config": config.model_dump(mode="json"),
            "data_fingerprint": data.fingerprint(),
            "class_map": self.class_map.meaning,
            "class_map_sha256": self.class_map.sha256,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }
        self._names = {parameter: name for name, parameter in method.named_parameters()}

    @property
    def global_step(self) -> int:
        """Steps since the stage began."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def context(self) -> StepContext:
        """The position as methods and schedules see it."""
        return StepContext(self.epoch, self.epochs, self.step, self.steps_per_epoch)

    def metadata(self) -> dict[str, Any]:
        """Returns everything but the tensors, as JSON values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "validation": self.validation,
            "bad_images": self.bad_images.reasons,
            "nonfinite_steps": self.nonfinite_steps,
            **self._provenance,
            "momentum": sorted(self._names[parameter] for parameter in self.optimisers.momentum()),
            "world": world_size(),
            "device": self.device.type,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns this rank's tensors by name; those of method and momentum are the live ones.

        The labels of the classes, int64 [C], are saved for reference and never read back.
        """
        labels = {"class_map.label_C": torch.from_numpy(self.class_map.label_C)}
        return {**self._model_tensors(), **self._generator_states(), **labels}

    def sharded(self) -> dict[str, ClassRange]:
        """Returns the names of the tensors that hold this rank's rows of all classes, with their class range."""
        entries = sharded_entries(self.method)
        return {f"{kind}.{name}": classes for kind in ("method", "momentum") for name, classes in entries.items()}

    def allocate(self, metadata: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Returns the tensors to fill from a checkpoint with this metadata; method and momentum are the live ones.

        Raises UserError if the checkpoint comes from other data or another model.
        """
        differences = [
            f"{name} {metadata[key][:12]} there, {self._provenance[key][:12]} here"
            for key, name in DATA_IDENTITY.items()
            if metadata[key] != self._provenance[key]
        ]
        if differences:
            raise UserError(
                f"checkpoint of other training data ({'; '.join(differences)}); resume with the original data, or "
                "start a new run with another out=FOLDER"
            )
        parameters = {name: parameter for parameter, name in self._names.items()}
        unknown = set(metadata["momentum"]) - parameters.keys()
        if unknown:
            raise UserError(f"checkpoint mismatch: unexpected parameter {min(unknown)}")
        self.optimisers.allocate_momentum(parameters[name] for name in metadata["momentum"])
        tensors = self._model_tensors()
        # Ranks that the saved run did not have keep their initial generators.
        if rank() < metadata["world"] and metadata["device"] == self.device.type:
            tensors |= {name: torch.empty_like(state) for name, state in self._generator_states().items()}
        return tensors

    def load(self, metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over the metadata and the generator states of a checkpoint whose tensors have been filled."""
        self.epoch, self.step, self.best = metadata["epoch"], metadata["step"], metadata["best"]
        self.validation = metadata.get("validation", {})
        self.bad_images.reasons.update(metadata["bad_images"])
        self.nonfinite_steps = metadata["nonfinite_steps"]
        if f"random.{rank()}" in tensors:
            torch.set_rng_state(tensors[f"random.{rank()}"])
        if f"cuda_random.{rank()}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda_random.{rank()}"], self.device)

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        momentum = self.optimisers.momentum().items()
        return {
            **{f"method.{name}": value for name, value in self.method.state_dict().items()},
            **{f"momentum.{self._names[parameter]}": value for parameter, value in momentum},
        }

    def _generator_states(self) -> dict[str, torch.Tensor]:
        states = {f"random.{rank()}": torch.get_rng_state()}
        if self.device.type == "cuda":
            states[f"cuda_random.{rank()}"] = torch.cuda.get_rng_state(self.device)
        return states
