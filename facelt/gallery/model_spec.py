"""Model specification of a gallery: the model, the kind of embedding and its dimension."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from facelt.errors import UserError
from facelt.store.store import EMBEDDING_KINDS, UNIT_KINDS, EmbeddingStore

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelSpec:
    """Model of a gallery: its name, the SHA-256 of its weights, the kind of embedding and its dimension.

    Raises UserError on invalid values.
    """

    model: str
    weights_sha256: str
    kind: str
    dimension: int

    def __post_init__(self) -> None:
        if not self.model or not self.model.isprintable() or len(self.model) > 200:
            raise UserError(f"the model name is {self.model!r}; it must be 1 to 200 printable characters")
        if not _SHA256.fullmatch(self.weights_sha256):
            raise UserError(f"weights_sha256 is {self.weights_sha256!r}; it must be the 64 hex digits of a SHA-256")
        if self.kind not in EMBEDDING_KINDS:
            raise UserError(f"the kind of embedding is {self.kind!r}; allowed are {', '.join(EMBEDDING_KINDS)}")
        if type(self.dimension) is not int or not 1 <= self.dimension <= 65536:
            raise UserError(f"the dimension is {self.dimension!r}; it must be an integer from 1 to 65536")

    @classmethod
    def of_store(cls, store: EmbeddingStore, kind: str) -> "ModelSpec":
        """Returns the model that wrote a store. Raises UserError if the store does not name it or lacks the kind."""
        model = store.meta.get("model")
        digest = model.get("weights_sha256") if isinstance(model, dict) else None
        if not isinstance(digest, str):
            raise UserError(f"{store.path}: meta.json does not name the weights of the model (model.weights_sha256)")
        dimension = store.embedding(kind).shape[1]
        return cls(model_name(model.get("backbone"), model.get("stage")), digest, kind, dimension)

    @classmethod
    def of_model(cls, model: Any, kind: str) -> "ModelSpec":
        """Returns the specification of a trained model (facelt.inference.model.TrainedModel)."""
        name = model_name(model.config.model.backbone, model.card["stage"])
        return cls(name, model.weights_sha256, kind, model.method.dim)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """Restores the result of `to_dict`. Raises TypeError on unknown keys, UserError on invalid values."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)

    @property
    def is_unit(self) -> bool:
        """True if embeddings are compared by cosine, false if by inner product."""
        return self.kind in UNIT_KINDS

    def refuse_other(self, other: "ModelSpec", source: str) -> None:
        """Raises UserError, naming both, unless `other`, the specification of `source`, is equal."""
        if other != self:
            raise UserError(
                f"{source}: holds {other}, this gallery is pinned to {self}; embed the images again with that model"
            )

    def __str__(self) -> str:
        return f"{self.kind} of {self.dimension} by {self.model!r} ({self.weights_sha256[:12]})"


def model_name(backbone: object, stage: object) -> str:
    """Returns the name of a model trained by facelt."""
    return f"{backbone}/{stage}"
