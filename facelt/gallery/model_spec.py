"""What a gallery is pinned to: one model and one kind of its embeddings. N samples, D feature."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from facelt.errors import UserError
from facelt.store.store import EMBEDDING_KINDS, UNIT_KINDS, EmbeddingStore

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Contract:
    """A model by its name and the SHA-256 of its weights, the kind of embedding, its dimension.

    Raises UserError where one of them cannot be that.
    """

    model: str
    weights_sha256: str
    kind: str
    dimension: int

    def __post_init__(self) -> None:
        if not self.model or not self.model.isprintable() or len(self.model) > 200:
            raise UserError(f"the model's name is {self.model!r}; it must be one to 200 printable letters")
        if not _SHA256.fullmatch(self.weights_sha256):
            raise UserError(f"weights_sha256 is {self.weights_sha256!r}; it must be the 64 hex digits of a SHA-256")
        if self.kind not in EMBEDDING_KINDS:
            raise UserError(f"the kind of embedding is {self.kind!r}; allowed are {', '.join(EMBEDDING_KINDS)}")
        if type(self.dimension) is not int or not 1 <= self.dimension <= 65536:
            raise UserError(f"the dimension is {self.dimension!r}; it must be a whole number from 1 to 65536")

    @classmethod
    def of_store(cls, store: EmbeddingStore, kind: str) -> "Contract":
        """The model that made a store. Raises UserError where the store does not say, or lacks the kind."""
        model = store.meta.get("model")
        digest = model.get("weights_sha256") if isinstance(model, dict) else None
        if not isinstance(digest, str):
            raise UserError(f"{store.path}: does not say which weights made it (model.weights_sha256 of meta.json)")
        dimension = store.embedding(kind).shape[1]
        return cls(model_name(model.get("backbone"), model.get("stage")), digest, kind, dimension)

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> "Contract":
        """From what `as_dict` gives. Raises TypeError on other keys, UserError on other values."""
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def is_unit(self) -> bool:
        """Whether embeddings are compared by their direction; others by inner product."""
        return self.kind in UNIT_KINDS

    def refuse_other(self, other: "Contract", what: str) -> None:
        """Raises UserError, naming both, unless `other`, that of `what`, is this one."""
        if (self.weights_sha256, self.kind, self.dimension, self.model) != (
            *(other.weights_sha256, other.kind, other.dimension),
            other.model,
        ):
            raise UserError(
                f"{what}: holds {other}, this gallery is pinned to {self}; embed the images again with that model"
            )

    def __str__(self) -> str:
        return f"{self.kind} of {self.dimension} by {self.model!r} ({self.weights_sha256[:12]})"


def model_name(backbone: object, stage: object) -> str:
    """What a model trained here is called in a contract."""
    return f"{backbone}/{stage}"
