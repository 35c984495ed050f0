"""Model specification of a gallery: the model, its preprocessing, the kind of embedding and its dimension."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from facelt.errors import UserError
from facelt.store.store import EMBEDDING_KINDS, UNIT_KINDS, EmbeddingStore

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PreprocessingSpec:
    """Preprocessing of a model's images, as far as known; None for what is not.

    `image_size` is (height, width), `channels` names their order and the formula of `mean` and `std`, one number per
    channel, and `alignment` the template of the landmarks of aligned faces.
    """

    image_size: tuple[float, ...] | None = None
    channels: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    alignment: str | None = None

    @classmethod
    def of_metadata(cls, values: object) -> "PreprocessingSpec":
        """Returns what the preprocessing in a model card or in the metadata of a store says; ignores other entries."""
        if not isinstance(values, Mapping):
            return cls()
        known = {name: values.get(name) for name in ("image_size", "channels", "mean", "std")}
        alignment = values.get("alignment")
        return cls.from_dict({**known, "alignment": alignment.get("template") if isinstance(alignment, dict) else None})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PreprocessingSpec":
        """Restores fields from JSON. Raises TypeError on unknown names."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def differing_fields(self, other: "PreprocessingSpec") -> list[str]:
        """Returns the names of the fields that both know and that differ."""
        names = [item.name for item in fields(self)]
        return [
            name
            for name in names
            if None not in (getattr(self, name), getattr(other, name)) and getattr(self, name) != getattr(other, name)
        ]

    def describe(self, names: Sequence[str] = ()) -> str:
        """Returns the text of these fields, by default of all that are known."""
        shown = {name: getattr(self, name) for name in names or [item.name for item in fields(self)]}
        texts = {
            name: " x ".join(f"{number:g}" for number in value) if name == "image_size" else value
            for name, value in shown.items()
            if value is not None
        }
        return ", ".join(f"{name} {value}" for name, value in texts.items()) or "not recorded"


@dataclass(frozen=True)
class ModelSpec:
    """Model of a gallery: its name, the SHA-256 of its weights, the kind of embedding and its dimension.

    The preprocessing is compared by `refuse_other`, as far as it is known. Raises UserError on invalid values.
    """

    model: str
    weights_sha256: str
    kind: str
    dimension: int
    preprocessing: PreprocessingSpec = field(default=PreprocessingSpec(), compare=False)

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
        name = model_name(model.get("backbone"), model.get("stage"))
        return cls(name, digest, kind, dimension, PreprocessingSpec.of_metadata(store.meta.get("preprocessing")))

    @classmethod
    def of_model(cls, model: Any, kind: str, alignment: Mapping[str, str] | None = None) -> "ModelSpec":
        """Returns the specification of a trained model (facelt.inference.model.TrainedModel).

        The preprocessing is that of the card's configuration, which is applied; `alignment` is that of photographs.
        """
        name = model_name(model.config.model.backbone, model.card["stage"])
        data = model.config.data
        applied = {"image_size": list(data.image_size), "mean": list(data.mean), "std": list(data.std)}
        preprocessing = {**model.card["preprocessing"], **applied, "alignment": alignment}
        return cls(name, model.weights_sha256, kind, model.method.dim, PreprocessingSpec.of_metadata(preprocessing))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """Restores the result of `to_dict`. Raises TypeError on unknown keys, UserError on invalid values."""
        # Galleries of earlier versions have no preprocessing.
        preprocessing = PreprocessingSpec.from_dict(values.get("preprocessing", {}))
        return cls(**{**values, "preprocessing": preprocessing})

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
        if names := self.preprocessing.differing_fields(other.preprocessing):
            raise UserError(
                f"{source}: its preprocessing has {other.preprocessing.describe(names)}, this gallery is pinned to "
                f"{self.preprocessing.describe(names)}; embed the images again with that preprocessing"
            )

    def __str__(self) -> str:
        return f"{self.kind} of {self.dimension} by {self.model!r} ({self.weights_sha256[:12]})"


def model_name(backbone: object, stage: object) -> str:
    """Returns the name of a model trained by facelt."""
    return f"{backbone}/{stage}"
