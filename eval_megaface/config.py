"""What `run.py` can be told: the suite, the models and how they are measured."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.base import EmbeddingKind, StrictModel
from facelt.search.factory import EngineName

Count = Annotated[int, Field(ge=1)]
# Ranks of the cumulative match characteristic; MegaFace's distractor searches are kept this deep.
DEEPEST_RANK = 20


class AttributesConfig(StrictModel):
    """A CSV of attributes: the column that names the identity, and the columns to group by (default: all others)."""

    path: Path
    identity: str = "identity"
    columns: tuple[str, ...] | None = None


class SuiteConfig(StrictModel):
    """MegaFace's files, relative to `root`; `megaface_lists` is a folder of lists or NAME_{size}_{set}."""

    root: Path = Path()
    facescrub_list: Path
    megaface_lists: str
    sizes: tuple[Count, ...] | None = None
    sets: tuple[Count, ...] | None = None
    facescrub_noises: Path | None = None
    megaface_noises: Path | None = None
    actors: Path | None = None
    actresses: Path | None = None
    attributes: AttributesConfig | None = None

    @model_validator(mode="after")
    def _actors_and_actresses(self) -> "SuiteConfig":
        if (self.actors is None) != (self.actresses is None):
            raise ValueError("actors and actresses go together: give both files or neither")
        return self


class ModelFiles(StrictModel):
    """One model's embeddings: stores, or trees of .bin files with the suffix `algorithm`.

    `train` is a store of training embeddings, for the shots; `training_identities` a CSV with a column `name`.
    """

    probes: Path
    distractors: Path
    train: Path | None = None
    training_identities: Path | None = None
    algorithm: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] | None = None


class NoiseConfig(StrictModel):
    """How images on the noise lists are treated; `seed` draws the noise that mode `insightface` adds."""

    mode: Literal["drop", "raw", "insightface"] = "drop"
    seed: int = Field(0, ge=0, lt=2**63)


class ShotsConfig(StrictModel):
    """Pseudo-shots: training embeddings more similar than `threshold`.

    `reference` is the model whose `direct` similarities count for all, by its name or its `train` store; by default
    each model counts by its own.
    """

    threshold: float = Field(0.7, ge=-1, le=1)
    reference: str | None = None


class IntervalConfig(StrictModel):
    """The identity bootstrap."""

    replicates: int = Field(2000, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**63)
    level: float = Field(0.95, gt=0, lt=1)


class SearchConfig(StrictModel):
    """Who searches: `auto` is faiss where it is installed, else torch; each takes a GPU if it can.

    A large search is torch's by `auto` where it is installed and the machine multiplies bfloat16 fast.
    """

    engine: EngineName = "auto"


class OpenSetConfig(StrictModel):
    """Open-set identification: a mate is found when it is among the best `rank`; `seed` draws who is enrolled."""

    rank: int = Field(1, ge=1, le=DEEPEST_RANK)
    seed: int = Field(0, ge=0, lt=2**63)


class MegafaceConfig(StrictModel):
    """What `facelt megaface` runs. `ranks` are those of the tables; the CMC always has 1 to 20.

    `verification` and `open_set` (null: no) each go through all distractors once more, for every model and kind.
    """

    title: str = "MegaFace identification"
    notes: tuple[str, ...] = ()
    out: Path
    suite: SuiteConfig
    models: Annotated[dict[str, ModelFiles], Field(min_length=1)]
    kinds: Literal["all"] | tuple[EmbeddingKind, ...] = "all"
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=DEEPEST_RANK)], ...], Field(min_length=1)] = (1,)
    noise: NoiseConfig = NoiseConfig()
    shots: ShotsConfig = ShotsConfig()
    interval: IntervalConfig = IntervalConfig()
    search: SearchConfig = SearchConfig()
    verification: bool = False
    open_set: OpenSetConfig | None = None
    allow_overlap: bool = False
    allow_missing: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _reference_is_a_model(self) -> "MegafaceConfig":
        reference = self.shots.reference
        if reference is None:
            return self
        name = self.reference_model(next(iter(self.models)))
        if name is None:
            raise ValueError(
                f"shots.reference: {reference!r} is neither a model ({', '.join(self.models)}) nor a model's train"
            )
        if self.models[name].train is None:
            raise ValueError(f"shots.reference: the model {name!r} has no train store to count in")
        return self

    def reference_model(self, model: str) -> str | None:
        """The name of the model whose similarities decide the shots of `model`; None where the reference is unknown."""
        reference = self.shots.reference
        if reference is None:
            return model
        if reference in self.models:
            return reference
        stores = {files.train: name for name, files in self.models.items() if files.train is not None}
        return stores.get(Path(reference))
