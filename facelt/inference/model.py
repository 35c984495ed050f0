"""Trained models: a stage's weights as safetensors and its model card, saved and loaded.

Parameters of the classes are sharded over ranks in memory and complete in the file. C classes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from facelt.config.loading import explain
from facelt.config.registry import METHODS
from facelt.config.train import StageConfig, TrainConfig
from facelt.distributed.class_shards import ClassRange, sharded_entries
from facelt.distributed.comm import rank, world_size
from facelt.distributed.launch import run_on_rank0
from facelt.errors import UserError
from facelt.methods.base import Method
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.models.pretrained import state_mismatch
from recordio_tools.atomic_io import atomic_replace, sha256_of, write_text
from recordio_tools.bounded_io import read_json

MODEL_SCHEMA = "facelt.model/1"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "card.json"
STAGES_FILE = "stages.json"


@dataclass(frozen=True)
class TrainedModel:
    """A method in evaluation mode, its run's configuration, its card, and its weights file."""

    method: Method
    config: TrainConfig
    card: dict[str, Any]
    weights: Path
    weights_sha256: str

    def require_kind(self, kind: str) -> None:
        """Raises UserError unless the method makes embeddings of this kind."""
        if kind not in self.method.kinds:
            raise UserError(
                f"{self.weights.parent}: stage {self.card['stage']} makes no embedding of kind {kind!r}, only "
                f"{', '.join(self.method.kinds)}"
            )


def run_stage_name(config: TrainConfig, card: dict[str, Any], number: int = 1) -> str:
    """Returns a model's run and stage, and its number among models of the same name, from 2."""
    return f"{config.out.name}/{card['stage']}" + (f" ({number})" if number > 1 else "")


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Loads the model in a stage's folder, or that of the last stage of a finished run.

    Raises UserError if shapes or digest of the weights do not match the card. A card without a digest is accepted.
    """
    folder = find_model_folder(path)
    card, config, stage = read_card(folder / CARD_FILE)
    # Compare shapes before allocating memory: a card may claim any number of classes.
    with torch.device("meta"):
        meta_method = build_method(config, stage, card["num_classes"])
    validate_weights(folder / WEIGHTS_FILE, meta_method)
    digest = sha256_of(folder / WEIGHTS_FILE)
    if card.get("weights_sha256", digest) != digest:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: does not match {CARD_FILE}: its SHA-256 begins with {digest[:12]}, the card "
            f"says {str(card['weights_sha256'])[:12]}; copy both files again from their origin"
        )
    with torch.random.fork_rng(devices=[]):
        method = build_method(config, stage, card["num_classes"])
    load_weights(folder / WEIGHTS_FILE, method)
    return TrainedModel(method.to(device).eval(), config, card, folder / WEIGHTS_FILE, digest)


def find_model_folder(path: Path) -> Path:
    """Returns the folder with weights and card: `path` or its parent, or that of a run's last stage.

    Raises UserError for a run whose last stage is not finished: an earlier stage is used only if its folder is named.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE:
        path = path.parent
    if (path / CARD_FILE).is_file():
        return path
    try:
        stages = read_stage_names(path / STAGES_FILE)
    except (OSError, ValueError):
        if path.is_file():
            raise UserError(
                f"{path}: a file, not the folder of a run; weights become a model through model.pretrained and a stage "
                "with epochs: 0 (docs/training.md)"
            ) from None
        raise UserError(
            f"{path}: neither a run nor a stage's folder (it has no {CARD_FILE} and no list {STAGES_FILE})"
        ) from None
    is_finished = {stage: (path / stage / CARD_FILE).is_file() for stage in stages}
    if not any(is_finished.values()):
        raise UserError(f"{path}: no stage of this run is finished; continue it with --resume")
    *_, last = stages
    if not is_finished[last]:
        earlier = [str(path / stage) for stage in stages if is_finished[stage]]
        raise UserError(
            f"{path}: stage {last} of this run is not finished; continue the run with --resume, or name the folder of "
            f"a finished stage: {', '.join(earlier)}"
        )
    return path / last


def read_stage_names(path: Path) -> list[str]:
    """Reads the names of a run's stages, in their order. Raises OSError, or ValueError for anything but such names."""
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError("not a list of stages")
    return names


def describe_model(path: Path) -> str:
    """Returns the folder, stage and epoch of the model that `load_model` loads, from its card. Raises UserError."""
    folder = find_model_folder(path)
    card, _, stage = read_card(folder / CARD_FILE)
    best = card.get("best") if stage.keep == "best" else None
    epoch = best.get("epoch") if isinstance(best, dict) else None
    epoch = epoch if isinstance(epoch, int | float) else stage.epochs
    return f"{folder}: stage {stage.name}, epoch {epoch:g} of {stage.epochs}"


def build_method(
    config: TrainConfig, stage: StageConfig, num_classes: int, counts_C: torch.Tensor | None = None
) -> Method:
    """Builds a stage's method with random weights; training needs the images of each class, `counts_C`."""
    network = build_network(
        config.model.backbone,
        image_size=config.data.image_size,
        attention=stage.attention,
        embedding=stage.embedding,
        dim=config.model.dim,
        width=config.model.width,
        branches=None if stage.branches is None else BranchSpec(**stage.branches.model_dump()),
    )
    return METHODS[stage.method.name](stage.method, network, num_classes, counts_C)


def build_card(config: TrainConfig, stage: StageConfig, method: Method, **facts: Any) -> dict[str, Any]:
    """Returns a model card: all that is needed to use the weights, and the given facts."""
    return {
        "schema": MODEL_SCHEMA,
        "stage": stage.name,
        "kinds": list(method.kinds),
        "dim": method.dim,
        "preprocessing": {
            "image_size": list(config.data.image_size),
            "mean": list(config.data.mean),
            "std": list(config.data.std),
            "channels": "RGB, (pixel / 255 - mean) / std",
        },
        "config": config.model_dump(mode="json"),
        **facts,
    }


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Writes a model card as JSON."""
    write_text(path, json.dumps(card, indent=1, sort_keys=True) + "\n")


def read_card(path: Path) -> tuple[dict[str, Any], TrainConfig, StageConfig]:
    """Reads a model card; returns it, its run's configuration and its stage's. Raises UserError."""
    try:
        card = read_json(path)
        if card["schema"] != MODEL_SCHEMA:
            raise UserError(f"{path}: the schema is {card['schema']!r}, this version reads {MODEL_SCHEMA!r}")
        config = TrainConfig.model_validate(card["config"])
        stage = next(stage for stage in config.stages if stage.name == card["stage"])
        if type(card["num_classes"]) is not int or not 1 <= card["num_classes"] < 2**31:
            raise ValueError("num_classes")
        if not isinstance(card["preprocessing"], dict):
            raise ValueError("preprocessing")
    except ValidationError as error:
        raise UserError(explain(error, source=str(path))) from None
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise UserError(f"{path}: not a model card of this version of facelt") from None
    return card, config, stage


def save_weights(method: Method, path: Path) -> None:
    """Writes the method's tensors atomically, from rank 0, which gathers the rows of all classes shard by shard."""
    ranges = sharded_entries(method)
    tensors = {}
    for name, value in method.state_dict().items():
        complete = _gather_rows(value, ranges[name]) if name in ranges else value
        if complete is not None:
            tensors[name] = complete.contiguous()

    def write() -> None:
        try:
            with atomic_replace(path) as temporary:
                save_file(tensors, temporary)
        except safetensors.SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from None

    run_on_rank0(write)


def load_weights(path: Path, method: Method) -> None:
    """Loads the method's tensors; of the classes' rows, only this rank's are read."""
    ranges = sharded_entries(method)
    with open_weights(path) as entries:
        state = {
            name: entry[ranges[name].first : ranges[name].stop] if name in ranges else entry.read()
            for name, entry in entries.items()
        }
        method.load_state_dict(state)


def validate_weights(path: Path, method: Method) -> None:
    """Raises UserError unless names, shapes and types in the file are those of the method, which may be on `meta`."""
    ranges = sharded_entries(method)
    expected = {
        name: torch.empty((ranges[name].total, *value.shape[1:]), dtype=value.dtype, device="meta")
        if name in ranges
        else value
        for name, value in method.state_dict().items()
    }
    with open_weights(path) as entries:
        mismatch = state_mismatch(expected, {name: entry.to_meta() for name, entry in entries.items()})
    if mismatch:
        raise UserError(f"{path}: the weights do not belong to this model: {mismatch}")


class StoredTensor:
    """A tensor in an open safetensors file; values are read on access."""

    def __init__(self, stored) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.get_shape())

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._stored[rows]

    def read(self) -> torch.Tensor:
        return self._stored[...]

    def to_meta(self) -> torch.Tensor:
        """Returns shape and type without values."""
        sample = self._stored[:0] if self.shape else self.read()
        return torch.empty(self.shape, dtype=sample.dtype, device="meta")


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """Yields the tensors of a file by name. Raises UserError for a missing or damaged file, also on later reads."""
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: StoredTensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot read the weights ({error})") from None


def network_state(
    entries: Mapping[str, StoredTensor], read: Callable[[StoredTensor], torch.Tensor] = StoredTensor.read
) -> dict[str, torch.Tensor]:
    """Returns the network's tensors, which are never sharded; without values if `read` is StoredTensor.to_meta."""
    prefix = "network."
    return {name.removeprefix(prefix): read(entry) for name, entry in entries.items() if name.startswith(prefix)}


def _gather_rows(value: torch.Tensor, classes: ClassRange) -> torch.Tensor | None:
    """Returns the rows of all classes on rank 0 and None on other ranks."""
    if world_size() == 1:
        return value
    # gloo cannot send booleans.
    shard = value.to("cpu", torch.uint8 if value.dtype == torch.bool else value.dtype).contiguous()
    if rank():
        if len(classes):
            dist.send(shard, 0)
        return None
    complete = shard.new_empty((classes.total, *shard.shape[1:]))
    complete[: len(classes)] = shard
    for source in range(1, world_size()):
        remote = ClassRange.of_rank(classes.total, source, world_size())
        if len(remote):
            dist.recv(complete[remote.first : remote.stop], source)
    return complete.to(value.dtype)
