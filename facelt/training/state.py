"""The tensors and facts a stage is saved as.

What a stage's state came from: configuration, data, classes and libraries.

Steps whose loss or gradient is not finite: skipped, written down, and no more of them than allowed.

Where a stage stands: kept up by the trainer, saved, and read back.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from facelt.config.train import StageConfig, TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.module import ClassMap, TrainingData
from facelt.distributed.class_shards import ClassRange, sharded_entries
from facelt.distributed.comm import rank, world_size
from facelt.distributed.ddp import sync_batch_norm_stats
from facelt.distributed.launch import all_gather_str, run_on_rank0
from facelt.errors import UserError
from facelt.methods.base import Method, Progress
from facelt.training.checkpoint import Checkpoints
from facelt.training.logs import SilentLog, StageDisplay
from facelt.training.optim import Optimisers
from facelt.training.run_folder import RunFolder
from facelt.training.update import Gradient
from recordio_tools.atomic_io import write_text


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
            "world": world_size(),
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
        own = sharded_entries(self.method)
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


LIBRARIES = ("facelt", "torch", "numpy", "safetensors")
DATA = {"data_fingerprint": "data fingerprint", "class_map_sha256": "class map"}


class Provenance:
    """Saved with every checkpoint; one of other data is refused."""

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        self.classes = ClassMap.of(config.data, data.num_classes)
        self.facts: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "data_fingerprint": data.fingerprint(),
            "class_map": self.classes.meaning,
            "class_map_sha256": self.classes.sha256,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The labels of the classes, int64 [C]: saved for who wants to know them; nothing is read back from them."""
        return {"class_map.label_C": torch.from_numpy(self.classes.label_C)}

    def refuse_other_data(self, facts: Mapping[str, Any], checkpoints: Path) -> None:
        """Raises UserError where a checkpoint of these facts was trained on other images or other classes."""
        other = [
            f"{name} {facts[key][:12]} there, {self.facts[key][:12]} here"
            for key, name in DATA.items()
            if facts[key] != self.facts[key]
        ]
        if other:
            raise UserError(
                f"{checkpoints}: these checkpoints are of other training data ({'; '.join(other)}); go on with the "
                "data they began with, or begin a new run with another out=FOLDER"
            )


class NonFiniteSteps:
    """Counts the skipped steps of a stage; what each of them saw is in `<folder>/<stage>-<epoch>-<step>.json`."""

    def __init__(self, folder: Path, stage: str, allowed: int) -> None:
        self.folder, self.stage, self.allowed = folder, stage, allowed
        self.skipped = 0

    def skip(self, progress: Progress, gradient: Gradient, names: Sequence[str], checkpoint: Path) -> str:
        """Takes note of a step, of which this rank had the images `names`; returns the line that says so.

        Raises UserError, on all ranks, once more steps than allowed are not finite and where the file cannot be
        written.
        """
        path = self.folder / f"{self.stage}-{progress.epoch}-{progress.step}.json"
        told = [json.loads(text) for text in all_gather_str(json.dumps([_number(gradient.norm), list(names)]))]
        facts = {
            "stage": self.stage,
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": _number(gradient.loss),
            "gradient_norm_by_rank": [norm for norm, _ in told],
            "images": [name for _, images in told for name in images],
        }
        run_on_rank0(lambda: write_text(path, json.dumps(facts, indent=1) + "\n"))
        what = (
            f"stage {self.stage}, epoch {progress.epoch}, step {progress.step}: the loss ({gradient.loss}) or its "
            "gradient is not finite; no update was made"
        )
        if self.skipped == self.allowed:
            raise UserError(
                f"{what}, and max_nonfinite_steps allows {self.allowed} of them to be skipped; the last checkpoint is "
                f"kept: {checkpoint}; lower optim.lr or look at the images of the step: {path}"
            )
        self.skipped += 1
        return f"{what}, skipped step {self.skipped} of {self.allowed} allowed; its images: {path}"


def _number(value: float) -> float | str:
    """JSON has no number that is not finite."""
    return value if math.isfinite(value) else str(value)


class Standing:
    """Epoch and step of the epoch that come next, the best validation, and what was left out or skipped so far."""

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        data: TrainingData,
        state: StageState,
        folder: RunFolder,
        log: SilentLog,
    ) -> None:
        self.stage, self.state, self.log = stage.name, state, log
        self.provenance = Provenance(config, data)
        self.checkpoints = Checkpoints(
            folder.checkpoints(stage.name),
            config.keep_checkpoints,
            in_background=config.checkpoint_async,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
        self.epoch = self.step = 0
        self._saved: tuple[int, int] | None = None
        self.best: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.bad = BadImageTracker(config.data.max_bad_images)
        self.nonfinite = NonFiniteSteps(folder.nonfinite, stage.name, config.max_nonfinite_steps)

    def save(self, global_step: int) -> None:
        """Every rank saves its share, under the number of steps taken so far; once at a place, where nothing moves."""
        if self._saved == (self.epoch, self.step):
            return
        self._saved = self.epoch, self.step
        sync_batch_norm_stats(self.state.method.network, self.state.device)
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "log_bytes": self.log.size,
            "best": self.best,
            "validation": self.validation,
            "bad_images": self.bad.reasons,
            "nonfinite_steps": self.nonfinite.skipped,
            **self.provenance.facts,
            **self.state.facts(),
        }
        tensors = {**self.state.tensors(), **self.provenance.tensors()}
        self.checkpoints.save(global_step, tensors, self.state.split(), facts)

    def restore(self) -> bool:
        """Goes on from the newest usable checkpoint; False where there is none. Raises UserError."""

        def targets(facts):
            self.provenance.refuse_other_data(facts, self.checkpoints.folder)
            return self.state.targets(facts)

        tell = StageDisplay(self.stage, 0, 0).line
        found = self.checkpoints.restore(targets, self.state.split(), tell)
        if found is None:
            return False
        saved, tensors = found
        self.state.take_random(tensors)
        self.log.truncate(saved["log_bytes"])
        self.bad.reasons.update(saved["bad_images"])
        self.nonfinite.skipped = saved["nonfinite_steps"]
        self.epoch, self.step, self.best = saved["epoch"], saved["step"], saved["best"]
        self.validation = saved.get("validation", {})
        self._saved = self.epoch, self.step
        return True
