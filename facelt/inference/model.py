"""Weights as safetensors: whole in the file, a range of the classes on each rank.

C classes.

What a stage hands on: weights as safetensors and a card that says what they are.
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


class StoredTensor:
    """A tensor in an open file; its rows are read when they are asked for."""

    def __init__(self, stored) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.get_shape())

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._stored[rows]

    def read(self) -> torch.Tensor:
        return self._stored[...]

    def to_meta(self) -> torch.Tensor:
        """Shape and type without values."""
        sample = self._stored[:0] if self.shape else self.read()
        return torch.empty(self.shape, dtype=sample.dtype, device="meta")


def save_weights(method: Method, path: Path) -> None:
    """The method's tensors, whole or not at all.

    Rank 0 puts the rows of all classes together, range by range; no other rank holds them.
    """
    split = sharded_entries(method)
    tensors = {}
    for name, value in method.state_dict().items():
        whole = _put_together(value, split[name]) if name in split else value
        if whole is not None:
            tensors[name] = whole.contiguous()

    def write() -> None:
        try:
            with atomic_replace(path) as temporary:
                save_file(tensors, temporary)
        except safetensors.SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from None

    run_on_rank0(write)


def _put_together(value: torch.Tensor, classes: ClassRange) -> torch.Tensor | None:
    """All rows on rank 0; None elsewhere."""
    if world_size() == 1:
        return value
    # gloo sends no truth values.
    own = value.to("cpu", torch.uint8 if value.dtype == torch.bool else value.dtype).contiguous()
    if rank():
        if len(classes):
            dist.send(own, 0)
        return None
    whole = own.new_empty((classes.total, *own.shape[1:]))
    whole[: len(classes)] = own
    for other in range(1, world_size()):
        theirs = ClassRange.of_rank(classes.total, other, world_size())
        if len(theirs):
            dist.recv(whole[theirs.first : theirs.stop], other)
    return whole.to(value.dtype)


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """The entries of a file by name. Raises UserError on a missing or damaged one, also while it is read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: StoredTensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot read the weights ({error})") from None


def validate_weights(path: Path, method: Method) -> None:
    """Raises UserError unless the file holds this method's tensors; reads none of them.

    The method may be one without memory, on the device meta.
    """
    split = sharded_entries(method)
    own = {
        name: torch.empty((split[name].total, *value.shape[1:]), dtype=value.dtype, device="meta")
        if name in split
        else value
        for name, value in method.state_dict().items()
    }
    with open_weights(path) as entries:
        given = {name: entry.to_meta() for name, entry in entries.items()}
    wrong = state_mismatch(own, given)
    if wrong:
        raise UserError(f"{path}: the weights do not belong to this model: {wrong}")


def load_weights(path: Path, method: Method) -> None:
    """Fills the method from a file of its tensors, reading of the classes' rows only those this rank holds."""
    split = sharded_entries(method)
    with open_weights(path) as entries:
        method.load_state_dict({name: _own_rows(entry, split.get(name)) for name, entry in entries.items()})


def network_state(
    entries: Mapping[str, StoredTensor], value: Callable[[StoredTensor], torch.Tensor] = StoredTensor.read
) -> dict[str, torch.Tensor]:
    """The network's tensors, which every rank holds whole; with StoredTensor.to_meta, without values."""
    prefix = "network."
    return {name.removeprefix(prefix): value(entry) for name, entry in entries.items() if name.startswith(prefix)}


def _own_rows(entry: StoredTensor, classes: ClassRange | None) -> torch.Tensor:
    return entry.read() if classes is None else entry[classes.first : classes.stop]


MODEL_SCHEMA = "facelt.model/1"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "card.json"


def build_method(
    config: TrainConfig, stage: StageConfig, num_classes: int, counts_C: torch.Tensor | None = None
) -> Method:
    """A stage's method with fresh weights from torch's random state; `counts_C` where it is to be trained."""
    network = build_network(
        config.model.backbone,
        image_size=config.data.image_size,
        attention=stage.attention,
        embedding=stage.embedding,
        dim=config.model.dim,
        branches=None if stage.branches is None else BranchSpec(**stage.branches.model_dump()),
    )
    return METHODS[stage.method.name](stage.method, network, num_classes, counts_C)


@dataclass(frozen=True)
class TrainedModel:
    """A method ready to embed, and its card."""

    method: Method
    config: TrainConfig
    card: dict[str, Any]
    weights: Path
    weights_sha256: str


def build_card(config: TrainConfig, stage: StageConfig, method: Method, **facts: Any) -> dict[str, Any]:
    """What someone who holds only the weights needs to know."""
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


def write_card(card: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(card, indent=1, sort_keys=True) + "\n")


def find_model_folder(path: Path) -> Path:
    """The folder with weights and card: `path` itself, or the last finished stage of a run."""
    path = Path(path)
    if path.name == WEIGHTS_FILE:
        path = path.parent
    if (path / CARD_FILE).is_file():
        return path
    try:
        stages = json.loads((path / "stages.json").read_text(encoding="utf-8"))
        if not isinstance(stages, list) or not all(isinstance(stage, str) for stage in stages):
            raise ValueError("no list of stages")
    except (OSError, ValueError):
        raise UserError(
            f"{path}: neither a run nor a stage's folder (no {CARD_FILE} here, nor a list stages.json)"
        ) from None
    finished = [path / stage for stage in stages if (path / stage / CARD_FILE).is_file()]
    if not finished:
        raise UserError(f"{path}: no stage of this run is finished; go on with --resume")
    return finished[-1]


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """The model in a stage's folder, or of the last finished stage of a run, in evaluation mode.

    Raises UserError where the weights do not belong to the card: of other shapes, or with another digest. Cards written
    before they had a digest are taken without one.
    """
    folder = find_model_folder(path)
    card, config, stage = read_card(folder / CARD_FILE)
    # Shapes first, without memory: a card may claim any number of identities.
    with torch.device("meta"):
        outline = build_method(config, stage, card["num_classes"])
    validate_weights(folder / WEIGHTS_FILE, outline)
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


def read_card(path: Path) -> tuple[dict[str, Any], TrainConfig, StageConfig]:
    """The card, and from it the run's configuration and the stage's."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
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
