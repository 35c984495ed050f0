"""Configuration of the MegaFace evaluation: suite, models, measurements."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.base import ColumnName, EmbeddingKind, StrictModel, allowed_names
from facelt.search.factory import EngineName

_PositiveInt = Annotated[int, Field(ge=1)]
# Deepest rank of the cumulative match characteristic, and so of every distractor search.
MAX_RANK = 20


class AttributeTableConfig(StrictModel):
    """CSV file of attributes at `path`.

    `identity` is the column that names the person, `columns` are those to group by (default: all others).
    """

    path: Path
    identity: ColumnName = "identity"
    columns: tuple[ColumnName, ...] | None = None


class SuiteConfig(StrictModel):
    """MegaFace's files, relative to `root`; `megaface_lists` is a folder of lists or NAME_{size}_{set}.

    `facescrub_list` has the probes. `sizes` and `sets` choose among the lists of distractors (default: all).
    Mislabelled images are in `facescrub_noises` and `megaface_noises`, gender in FaceScrub's files `actors` and
    `actresses`, other groups in the table `attributes`.
    """

    root: Path = Path()
    facescrub_list: Path
    megaface_lists: str
    sizes: tuple[_PositiveInt, ...] | None = None
    sets: tuple[_PositiveInt, ...] | None = None
    facescrub_noises: Path | None = None
    megaface_noises: Path | None = None
    actors: Path | None = None
    actresses: Path | None = None
    attributes: AttributeTableConfig | None = None

    @model_validator(mode="after")
    def _require_both_gender_files(self) -> "SuiteConfig":
        if (self.actors is None) != (self.actresses is None):
            raise ValueError("actors and actresses go together: give both files or neither")
        return self


class ModelFiles(StrictModel):
    """Embeddings of one model: stores, or trees of .bin files with the suffix `algorithm`.

    `probes` has those of FaceScrub's images, `distractors` those of MegaFace's.
    `train` is a store of training embeddings, for the pseudo-shots; `training_identities` an identities.csv, or another
    CSV file with a column `name`.
    """

    probes: Path
    distractors: Path
    train: Path | None = None
    training_identities: Path | None = None
    algorithm: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] | None = None


class NoiseConfig(StrictModel):
    """Treatment of images on the noise lists, by `mode`: left out (`drop`), kept (`raw`), or replaced (`insightface`).

    `seed` draws the noise that is added to a probe's class mean in its place.
    """

    mode: Literal["drop", "raw", "insightface"] = "drop"
    seed: int = Field(0, ge=0, lt=2**63)


class MegafaceShotsConfig(StrictModel):
    """Pseudo-shots: the number of training embeddings more similar to a probe than `threshold`.

    `reference` is the model whose `direct` similarities count for all models, by its name or its `train` store; by
    default each model uses its own.
    """

    threshold: float = Field(0.7, ge=-1, le=1)
    reference: str | None = None


class IntervalConfig(StrictModel):
    """Confidence intervals of rates and of differences, over identities; `level` is their coverage."""

    level: float = Field(0.95, gt=0, lt=1)


class CompareConfig(StrictModel):
    """Comparison of every other model and kind with the embeddings `kind` of the model `reference`."""

    reference: str
    kind: EmbeddingKind = "direct"


class SearchConfig(StrictModel):
    """Search `engine`: `auto` is faiss if installed, else torch; each uses a GPU if there is one.

    For a large search `auto` is torch, if it is installed and the machine has fast bfloat16 products.
    """

    engine: EngineName = "auto"


class OpenSetConfig(StrictModel):
    """Open-set identification: a mate counts as found within the best `rank`; `seed` draws the enrolled images."""

    rank: int = Field(1, ge=1, le=MAX_RANK)
    seed: int = Field(0, ge=0, lt=2**63)


class MegafaceConfig(StrictModel):
    """Configuration of `facelt megaface`. `ranks` are those of the tables; the CMC always has ranks 1 to 20.

    `out` is the folder of the report, with `title` and `notes` at its head. `suite` has the images and groups, `models`
    the embeddings by a name for each model, `kinds` the kinds of embedding to measure. `noise` treats mislabelled
    images, `shots` groups probes by similar training images, `interval` sets the confidence intervals, `search` the
    engine.

    With `compare` the shot bands of all differences are those of its `reference`, or of `shots.reference` if set.

    `allow_overlap` accepts probe identities that are in `training_identities` of a model, `allow_missing` is the number
    of images that may be left out for unusable features. `allow_mixed_models` accepts stores of different models as the
    probes, distractors and training of one model, `allow_duplicates` probes that have the embedding of a distractor.

    `verification` and `open_set` (null: off) each take one more pass over all distractors for every model and kind.
    """

    title: str = "MegaFace identification"
    notes: tuple[str, ...] = ()
    out: Path
    suite: SuiteConfig
    models: Annotated[dict[str, ModelFiles], Field(min_length=1)]
    kinds: Literal["all"] | tuple[EmbeddingKind, ...] = "all"
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_RANK)], ...], Field(min_length=1)] = (1,)
    noise: NoiseConfig = NoiseConfig()
    shots: MegafaceShotsConfig = MegafaceShotsConfig()
    interval: IntervalConfig = IntervalConfig()
    compare: CompareConfig | None = None
    search: SearchConfig = SearchConfig()
    verification: bool = False
    open_set: OpenSetConfig | None = None
    allow_overlap: bool = False
    allow_missing: int = Field(0, ge=0)
    allow_mixed_models: bool = False
    allow_duplicates: bool = False

    @model_validator(mode="after")
    def _require_reference_model(self) -> "MegafaceConfig":
        reference = self.shots.reference
        if reference is None:
            return self
        name = self.shots_reference_model(next(iter(self.models)))
        if name is None:
            raise ValueError(
                f"shots.reference: {reference!r} is neither a model ({', '.join(self.models)}) nor a model's train"
            )
        if self.models[name].train is None:
            raise ValueError(f"shots.reference: the model {name!r} has no train store to count in")
        return self

    @model_validator(mode="after")
    def _require_compared_model(self) -> "MegafaceConfig":
        if self.compare is not None and (name := self.compare.reference) not in self.models:
            raise ValueError(f"compare.reference: {name!r} is no model; {allowed_names(name, self.models)}")
        return self

    def shots_reference_model(self, model: str) -> str | None:
        """Returns the name of the model whose similarities define the shots of `model`; None for an unknown one."""
        reference = self.shots.reference
        if reference is None:
            return model
        if reference in self.models:
            return reference
        stores = {files.train: name for name, files in self.models.items() if files.train is not None}
        return stores.get(Path(reference))
