"""What an exported file says of itself.

The network alone, as safetensors, and a JSON card beside it that says how to build it and what it reads.
"""

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
    """The model a file was made from: the digest of its weights, its stage and its network."""
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
            "branches": None if stage.branches is None else stage.branches.model_dump(),
        },
    }


NETWORK_SCHEMA = "facelt.network/1"


def export_network(model: TrainedModel, path: Path) -> Path:
    """Writes the network's weights without head and memory, then the card PATH.json; returns the card's path.

    A plain IResNet has arcface_torch's names, so that its own class loads them; any other network has facelt's. The
    card's `weights_sha256` is the file's, so that a card beside other weights is known.

    Raises UserError where the disk refuses.
    """
    network = model.method.network
    arcface = arcface_state_dict(network)
    state = network.state_dict() if arcface is None else arcface
    advice = "choose another place with --out"
    content = save({name: value.contiguous() for name, value in state.items()})
    with atomic_replace(path, advice) as temporary:
        # Not by safetensors itself, whose files no one else may read.
        temporary.write_bytes(content)
    card = {
        "schema": NETWORK_SCHEMA,
        "names": "facelt" if arcface is None else "arcface_torch",
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "preprocessing": model.card["preprocessing"],
        "mirror_averaged": True,
        **model_origin(model),
    }
    place = path.with_suffix(".json")
    write_text(place, json.dumps(card, indent=1, sort_keys=True) + "\n", advice)
    return place
