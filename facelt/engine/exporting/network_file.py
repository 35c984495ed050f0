"""The network alone, as safetensors, and a JSON card beside it that says how to build it and what it reads."""

import json
from pathlib import Path

import safetensors
from safetensors.torch import save_file

from facelt.engine.exporting.card import origin
from facelt.engine.handed_on import TrainedModel
from facelt.errors import UserError
from facelt.models.pretrained import arcface_state
from facelt.whole_files import replacing, sha256_of, write_text

SCHEMA = "facelt.network/1"


def export_network(model: TrainedModel, path: Path) -> Path:
    """Writes the network's weights without head and memory, then the card PATH.json; returns the card's path.

    A plain IResNet has arcface_torch's names, so that its own class loads them; any other network has facelt's. The
    card's `weights_sha256` is the file's, so that a card beside other weights is known.

    Raises UserError where the disk refuses.
    """
    network = model.method.network
    arcface = arcface_state(network)
    state = network.state_dict() if arcface is None else arcface
    advice = "choose another place with --out"
    try:
        with replacing(path, advice) as temporary:
            save_file({name: value.contiguous() for name, value in state.items()}, temporary)
            digest = sha256_of(temporary)
    except safetensors.SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; {advice}") from None
    card = {
        "schema": SCHEMA,
        "names": "facelt" if arcface is None else "arcface_torch",
        "weights_sha256": digest,
        "preprocessing": model.card["preprocessing"],
        "embedding": "the mean of the features of image and mirror image, at unit length",
        **origin(model),
    }
    place = path.with_suffix(".json")
    write_text(place, json.dumps(card, indent=1, sort_keys=True) + "\n", advice)
    return place
