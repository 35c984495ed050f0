"""What an exported file says of itself."""

from typing import Any

from facelt.engine.handed_on import TrainedModel

INPUT = "RGB, (x - 127.5) / 127.5 for pixels x of 0 to 255"


def origin(model: TrainedModel) -> dict[str, Any]:
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
