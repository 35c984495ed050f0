"""What a stage hands on: weights as safetensors and a card that says what they are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from facelt.config import StageConfig, TrainConfig
from facelt.config.explain import explain
from facelt.engine.weights import load_weights, refuse_other_shapes
from facelt.errors import UserError
from facelt.methods import METHODS, Method
from facelt.models.branched import Branches
from facelt.models.network import build_network
from facelt.whole_files import sha256_of, write_text

SCHEMA = "facelt.model/1"
WEIGHTS = "model.safetensors"
CARD = "card.json"


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
        branches=None if stage.branches is None else Branches(**stage.branches.model_dump()),
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


def make_card(config: TrainConfig, stage: StageConfig, method: Method, **facts: Any) -> dict[str, Any]:
    """What someone who holds only the weights needs to know."""
    return {
        "schema": SCHEMA,
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


def save_card(card: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(card, indent=1, sort_keys=True) + "\n")


def find_model(path: Path) -> Path:
    """The folder with weights and card: `path` itself, or the last finished stage of a run."""
    path = Path(path)
    if path.name == WEIGHTS:
        path = path.parent
    if (path / CARD).is_file():
        return path
    try:
        stages = json.loads((path / "stages.json").read_text(encoding="utf-8"))
        if not isinstance(stages, list) or not all(isinstance(stage, str) for stage in stages):
            raise ValueError("no list of stages")
    except (OSError, ValueError):
        raise UserError(
            f"{path}: neither a run nor a stage's folder (no {CARD} here, nor a list stages.json)"
        ) from None
    finished = [path / stage for stage in stages if (path / stage / CARD).is_file()]
    if not finished:
        raise UserError(f"{path}: no stage of this run is finished; go on with --resume")
    return finished[-1]


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """The model in a stage's folder, or of the last finished stage of a run, in evaluation mode.

    Raises UserError where the weights do not belong to the card: of other shapes, or with another digest. Cards written
    before they had a digest are taken without one.
    """
    folder = find_model(path)
    card, config, stage = read_card(folder / CARD)
    # Shapes first, without memory: a card may claim any number of identities.
    with torch.device("meta"):
        outline = build_method(config, stage, card["num_classes"])
    refuse_other_shapes(folder / WEIGHTS, outline)
    digest = sha256_of(folder / WEIGHTS)
    if card.get("weights_sha256", digest) != digest:
        raise UserError(
            f"{folder / WEIGHTS}: not the file that {CARD} beside it was written for: its SHA-256 begins with "
            f"{digest[:12]}, the card says {str(card['weights_sha256'])[:12]}; copy both again from where they come"
        )
    with torch.random.fork_rng(devices=[]):
        method = build_method(config, stage, card["num_classes"])
    load_weights(folder / WEIGHTS, method)
    return TrainedModel(method.to(device).eval(), config, card, folder / WEIGHTS, digest)


def read_card(path: Path) -> tuple[dict[str, Any], TrainConfig, StageConfig]:
    """The card, and from it the run's configuration and the stage's."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["schema"] != SCHEMA:
            raise UserError(f"{path}: the schema is {card['schema']!r}, this version reads {SCHEMA!r}")
        config = TrainConfig.model_validate(card["config"])
        stage = next(stage for stage in config.stages if stage.name == card["stage"])
        if type(card["num_classes"]) is not int or not 1 <= card["num_classes"] < 2**31:
            raise ValueError("num_classes")
        if not isinstance(card["preprocessing"], dict):
            raise ValueError("preprocessing")
    except ValidationError as error:
        raise UserError(explain(error, TrainConfig, source=str(path))) from None
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise UserError(f"{path}: not a model card of this version of facelt") from None
    return card, config, stage
