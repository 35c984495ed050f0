"""Safetensors export: the weights of the network, and a JSON card."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from facelt.inference.model import TrainedModel
from facelt.models.pretrained import arcface_state_dict
from recordio_tools.atomic_io import atomic_replace, write_text

INPUT_FORMAT = "RGB, (x - 127.5) / 127.5 for pixels x of 0 to 255"


def model_origin(model: TrainedModel) -> dict[str, Any]:
    """Returns the provenance of an exported file: the digest of the model's weights, its stage and its network."""
    stage = next(stage for stage in model.config.stages if stage.name == model.card["stage"])
    return {
        "model_sha256": model.weights_sha256,
        "stage": stage.name,
        "method": stage.method.name,
        "network": {
            "backbone": model.config.model.backbone,
            "attention": stage.attention,
            "embedding": stage.embedding,
            "dim": model.config.model.dim,
            "width": model.config.model.width,
            "branches": None if stage.branches is None else stage.branches.model_dump(),
        },
    }


NETWORK_SCHEMA = "facelt.network/1"


def export_network(model: TrainedModel, path: Path) -> Path:
    """Writes the network's weights, without head and memory, then the card PATH.json; returns the card's path.

    A plain IResNet or MobileFaceNet is written with arcface_torch's names, which arcface_torch loads; other networks
    keep facelt's. The card's `weights_sha256` is the digest of the file, so that a card of other weights is detected.

    Raises UserError if the disk refuses.
    """
    network = model.method.network
    arcface = arcface_state_dict(network)
    state = network.state_dict() if arcface is None else arcface
    advice = "choose another path with --out"
    content = save({name: value.contiguous() for name, value in state.items()})
    with atomic_replace(path, advice) as temporary:
        # safetensors itself creates files that other users cannot read.
        temporary.write_bytes(content)
    card = {
        "schema": NETWORK_SCHEMA,
        "names": "facelt" if arcface is None else "arcface_torch",
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "preprocessing": model.card["preprocessing"],
        "mirror_averaged": True,
        **model_origin(model),
    }
    card_path = path.with_suffix(".json")
    write_text(card_path, json.dumps(card, indent=1, sort_keys=True) + "\n", advice)
    return card_path
