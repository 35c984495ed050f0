"""What `facelt audit` can be told: whose errors are counted, by which groups, at which threshold."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.base import StrictModel

EmbeddingKind = Literal["direct", "meta", "meta_unit"]
Rate = Annotated[float, Field(gt=0, lt=1)]
_Column = Annotated[str, Field(min_length=1)]


class FeaturesConfig(StrictModel):
    """An embedding store, or a tree of IMAGE_ALGORITHM.bin files with a list of its images.

    `noises` lists wrongly labelled images, which are left out; `list` also chooses among the images of a store.
    """

    path: Path
    algorithm: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] | None = None
    list: Path | None = None
    noises: Path | None = None


class AttributeTablesConfig(StrictModel):
    """Attributes of identities or images: CSV files, or FaceScrub's two tab-separated files.

    `key` names the column that says whose the row is; by default `key` (an image), else `identity`, `name` or `label`.
    """

    tables: tuple[Path, ...] = ()
    key: _Column | None = None
    actors: Path | None = None
    actresses: Path | None = None

    @model_validator(mode="after")
    def _both(self) -> "AttributeTablesConfig":
        if (self.actors is None) != (self.actresses is None):
            raise ValueError("actors and actresses go together: give both files or neither")
        return self


class ThresholdConfig(StrictModel):
    """The thresholds, the same for all groups: given as a `score`, or set so that an error rate is not exceeded.

    `fmr` over all non-mated pairs and, for searches, `fpir` over all non-mated searches of the audited set, or of the
    set in `store`. Where only one of the two is named it serves pairs and searches alike.
    """

    fmr: Rate | None = None
    fpir: Rate | None = None
    score: float | None = None
    store: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> "ThresholdConfig":
        if self.score is not None and (self.fmr, self.fpir, self.store) != (None, None, None):
            raise ValueError("a given score leaves nothing to be set: name either score or fmr, fpir and store")
        return self

    @property
    def wanted(self) -> "ThresholdConfig":
        """With the rates that apply where none was named: FMR 0.001 for pairs and FPIR 0.01 for searches."""
        if (self.fmr, self.fpir, self.score) != (None, None, None):
            return self
        return self.model_copy(update={"fmr": 1e-3, "fpir": 1e-2})


class PseudoShotsConfig(StrictModel):
    """Pseudo-shots of the audited images: training embeddings in the store `train` more similar than `threshold`."""

    train: Path | None = None
    threshold: float = Field(0.7, ge=-1, le=1)


class TrainingConfig(StrictModel):
    """A .rec to be counted: `identities` is by default the identities.csv beside it."""

    record: Path | None = None
    identities: Path | None = None
    convention: Literal["paper", "released"] = "paper"


class StatisticsConfig(StrictModel):
    """`level` of the intervals and of the tests' family-wise error 1 - level; `alpha` weighs FMR against FNMR."""

    level: float = Field(0.95, gt=0, lt=1)
    alpha: float = Field(0.5, ge=0, le=1)
    replicates: int = Field(2000, ge=100, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**63)


class ProvenanceConfig(StrictModel):
    """What only the auditor knows: where the data come from, who agreed to their use, under which terms."""

    data: str = ""
    consent: str = ""
    licence: str = ""
    model: str = ""
    auditor: str = ""


class AuditConfig(StrictModel):
    """What `facelt audit` runs; `by` names the groupings, each by one column or by several together."""

    title: str = "Audit of face recognition by group"
    notes: tuple[str, ...] = ()
    out: Path
    embeddings: FeaturesConfig | None = None
    gallery: FeaturesConfig | None = None
    against: FeaturesConfig | None = None
    against_gallery: FeaturesConfig | None = None
    scores: Path | None = None
    training: TrainingConfig = TrainingConfig()
    attributes: AttributeTablesConfig = AttributeTablesConfig()
    by: Annotated[tuple[Annotated[tuple[_Column, ...], Field(min_length=1)], ...], Field(min_length=1)]
    bins: dict[_Column, Annotated[tuple[float, ...], Field(min_length=1)]] = Field(default_factory=dict)
    min_identities: int = Field(5, ge=2)
    kind: EmbeddingKind = "direct"
    noise: Literal["drop", "raw"] = "drop"
    allow_missing: int = Field(0, ge=0)
    threshold: ThresholdConfig = ThresholdConfig()
    shots: PseudoShotsConfig = PseudoShotsConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    provenance: ProvenanceConfig = ProvenanceConfig()
    fail_if: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_subject(self) -> "AuditConfig":
        if self.embeddings is not None and self.scores is not None:
            raise ValueError("embeddings and scores are two ways to say what is audited: name one of them")
        if self.embeddings is None and self.scores is None and self.training.record is None:
            raise ValueError("nothing to audit: name embeddings, scores or training.record")
        if self.embeddings is None and (alone := [name for name in _WITH_EMBEDDINGS if getattr(self, name)]):
            raise ValueError(f"{alone[0]} goes with embeddings, which are not named")
        if self.embeddings is None and self.shots.train is not None:
            raise ValueError("shots.train goes with embeddings, which are not named")
        for column, edges in self.bins.items():
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"bins.{column}: the edges must ascend")
        return self


_WITH_EMBEDDINGS = ("gallery", "against", "against_gallery")
