"""Configuration of `facelt audit`: inputs, attributes and groupings, thresholds, statistics, provenance."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from facelt.config.base import ColumnName, EmbeddingKind, ShotConvention, StrictModel

# Meaning of a higher score in a scores file: the two images are more likely of the `same` or of `different` people.
HigherIs = Literal["same", "different"]

_Rate = Annotated[float, Field(gt=0, lt=1)]
# Keys that only apply to embeddings.
_NEED_EMBEDDINGS = ("gallery", "against", "against_gallery")


class FeaturesConfig(StrictModel):
    """Embedding store, tree of IMAGE_ALGORITHM.bin files with a list of its images, or .npy or .npz file, at `path`.

    `algorithm` is the suffix of a tree's files.
    `noises` is a list of mislabelled images to leave out; `list` also selects images of a store. `items` names the rows
    of a .npy or .npz file, `array` the array in the latter (default: that named as the kind, or the only one).
    """

    path: Path
    algorithm: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] | None = None
    list: Path | None = None
    noises: Path | None = None
    items: Path | None = None
    array: str | None = None


class AttributeTablesConfig(StrictModel):
    """Attributes of identities or images: the CSV files `tables`, or FaceScrub's two tab-separated files.

    `actors` and `actresses` are the latter, for gender.
    `key` is the column that identifies the image or identity; by default `key` (an image), else `identity`, `name` or
    `label`. `absent` says whether images that a table lists and the embeddings lack are failures to enrol.
    """

    tables: tuple[Path, ...] = ()
    key: ColumnName | None = None
    absent: Literal["ignore", "failure"] = "ignore"
    actors: Path | None = None
    actresses: Path | None = None

    @model_validator(mode="after")
    def _require_both_lists(self) -> "AttributeTablesConfig":
        if (self.actors is None) != (self.actresses is None):
            raise ValueError("actors and actresses go together: give both files or neither")
        return self


class ThresholdConfig(StrictModel):
    """Decision thresholds, the same for all groups: a given `score`, or the lowest that keeps an error rate.

    `fmr` limits the FMR of all non-mated pairs, `fpir` the FPIR of all non-mated searches, in the audited set or in the
    set in `store`. If only one of the two is set, its threshold serves both pairs and searches.
    """

    fmr: _Rate | None = None
    fpir: _Rate | None = None
    score: float | None = None
    store: Path | None = None

    @model_validator(mode="after")
    def _require_one_way(self) -> "ThresholdConfig":
        if self.score is not None and (self.fmr, self.fpir, self.store) != (None, None, None):
            raise ValueError("a given score excludes the others: name either score or fmr, fpir and store")
        return self

    @property
    def wanted(self) -> "ThresholdConfig":
        """Configuration with the default rates if none is set: FMR 0.001 for pairs and FPIR 0.01 for searches."""
        if (self.fmr, self.fpir, self.score) != (None, None, None):
            return self
        return self.model_copy(update={"fmr": 1e-3, "fpir": 1e-2})


class AuditShotsConfig(StrictModel):
    """Pseudo-shots of an image: training embeddings in the store `train` with a similarity above `threshold`."""

    train: Path | None = None
    threshold: float = Field(0.7, ge=-1, le=1)


class TrainingConfig(StrictModel):
    """Training record to count, the .rec file `record`; `identities` is by default the identities.csv in its folder.

    `convention` sets the limits of the shot bands: many > 100 and few < 20 (`paper`), or >= 100 and <= 20 (`released`).
    """

    record: Path | None = None
    identities: Path | None = None
    convention: ShotConvention = "paper"


class StatisticsConfig(StrictModel):
    """Intervals and tests: `level` of the intervals, `alpha` the weight of FMR against FNMR in joint disparities.

    `seed` draws who is enrolled in the open-set searches.
    """

    level: float = Field(0.95, gt=0, lt=1)
    alpha: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class ProvenanceConfig(StrictModel):
    """Statements of the auditor for the report.

    `data` is the origin of the images, `consent` the legal basis of their use, `licence` their licence, `model` the
    model that is audited, `auditor` the signature.
    """

    data: str = ""
    consent: str = ""
    licence: str = ""
    model: str = ""
    auditor: str = ""


class AuditConfig(StrictModel):
    """Configuration of an audit; `by` has the groupings, each one column or several for their intersection.

    `out` is the folder of the report, with `title` and `notes` at its head. `embeddings` or `scores` are audited;
    `gallery` has distractors to search among, `against` the embeddings of another model to compare with, and
    `against_gallery` its distractors. `kind` is the kind of embedding. `noise` drops images on noise lists or keeps
    them (`raw`); `allow_missing` is the number of images that may be left out for unusable features.

    `attributes` has the columns, `bins` the edges that cut a numeric column into intervals; groups of fewer than
    `min_identities` people are shown but not compared. `training` counts a training record by group, `shots` groups
    images by similar training images. `threshold` sets the decision thresholds, `statistics` the intervals and tests,
    `fail_if` the conditions that end the command with exit code 3, `provenance` statements for the report.

    `higher_is` says whether the scores of `scores` are similarities (`same`) or distances (`different`); a given
    `threshold.score` is in the unit of the file.
    `allow_mixed_models` accepts embeddings, gallery, training and threshold stores of different models,
    `allow_duplicates` images that have the embedding of a distractor.
    """

    title: str = "Audit of face recognition by group"
    notes: tuple[str, ...] = ()
    out: Path
    embeddings: FeaturesConfig | None = None
    gallery: FeaturesConfig | None = None
    against: FeaturesConfig | None = None
    against_gallery: FeaturesConfig | None = None
    scores: Path | None = None
    higher_is: HigherIs | None = None
    training: TrainingConfig = TrainingConfig()
    attributes: AttributeTablesConfig = AttributeTablesConfig()
    by: Annotated[tuple[Annotated[tuple[ColumnName, ...], Field(min_length=1)], ...], Field(min_length=1)]
    bins: dict[ColumnName, Annotated[tuple[float, ...], Field(min_length=1)]] = Field(default_factory=dict)
    min_identities: int = Field(5, ge=2)
    kind: EmbeddingKind = "direct"
    noise: Literal["drop", "raw"] = "drop"
    allow_missing: int = Field(0, ge=0)
    allow_mixed_models: bool = False
    allow_duplicates: bool = False
    threshold: ThresholdConfig = ThresholdConfig()
    shots: AuditShotsConfig = AuditShotsConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    provenance: ProvenanceConfig = ProvenanceConfig()
    fail_if: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _require_one_input(self) -> "AuditConfig":
        if self.embeddings is not None and self.scores is not None:
            raise ValueError("embeddings and scores exclude each other: name one of them")
        if self.embeddings is None and self.scores is None and self.training.record is None:
            raise ValueError("nothing to audit: name embeddings, scores or training.record")
        if self.embeddings is None and (dependent := [name for name in _NEED_EMBEDDINGS if getattr(self, name)]):
            raise ValueError(f"{dependent[0]} requires embeddings: set embeddings.path")
        if self.scores is None and self.higher_is is not None:
            raise ValueError("higher_is requires scores: embeddings are compared by similarity")
        if self.attributes.absent == "failure" and not self._has_all_images():
            raise ValueError(
                "attributes.absent (--absent-as-failures) requires embeddings without list, noises and against: images "
                "that were left out are no failures"
            )
        if self.embeddings is None and self.shots.train is not None:
            raise ValueError("shots.train requires embeddings: set embeddings.path")
        for column, edges in self.bins.items():
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"bins.{column}: the edges must ascend")
        return self

    def _has_all_images(self) -> bool:
        """Returns whether no image of the embeddings is left out, and no other model lacks one."""
        features = self.embeddings
        return features is not None and (features.list, features.noises, self.against) == (None, None, None)
