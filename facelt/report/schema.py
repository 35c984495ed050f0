"""Report schemas: the base class of all reports, and the models of `facelt.evaluation/1` and `facelt.verification/1`.

A model is the schema: `report.json` is its dump, keys in the order of the fields, the run last. Rates are fractions;
None means that there was nothing to measure.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facelt.utils.json_values import to_json_values

OptionalRate = float | None


class ReportPart(BaseModel):
    """A part of a report. Unknown keys are refused, so that the dump equals the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RunInput(ReportPart):
    """SHA-256 of an input, and a command line that computes it again."""

    path: str
    sha256: str
    command: str


class RunProvenance(ReportPart):
    """Origin of a report: date (ISO 8601, UTC), version of facelt, command line, resolved settings, seeds, inputs."""

    date: str
    version: str
    command: str
    settings: dict[str, Any]
    seeds: dict[str, int]
    inputs: list[RunInput]


class ReportModel(ReportPart):
    """Base class of all reports; commands add `run`, which is the last key of each."""

    run: RunProvenance | None = None

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Returns the report that holds `values`: numpy scalars and arrays become numbers and lists, NaN becomes None.

        Raises ValueError, in one line, naming the key that is missing or wrong; TypeError on a value that JSON cannot
        hold.
        """
        schema = cls.model_fields["schema_name"].default
        try:
            return cls.model_validate({"schema": schema, **to_json_values(dict(values))})
        except ValidationError as error:
            raise ValueError(f"{_first_error(error)} (schema {schema})") from error

    def with_run(self, values: Mapping[str, Any]) -> Self:
        """Returns a copy with the provenance of its run, as `run_provenance` returns it."""
        return self.model_copy(update={"run": RunProvenance.model_validate(to_json_values(dict(values)))})

    def json_values(self) -> dict[str, Any]:
        """Returns the JSON values of `report.json`; an optional key that was not given stays absent."""
        values = self.model_dump(by_alias=True, exclude_unset=True)
        run = values.pop("run", None)
        return values if run is None else {**values, "run": run}


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    *parents, key = first["loc"]
    parent = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parents).removeprefix(".")
    if first["type"] == "missing":
        return f"{parent or 'report'} lacks {key}"
    if first["type"] == "union_tag_not_found":
        discriminator = first["ctx"]["discriminator"].strip("'")
        return f"{key} lacks {discriminator}"
    path = f"{parent}[{key}]" if isinstance(key, int) else f"{parent}.{key}".removeprefix(".")
    return f"{path}: {first['msg']}, got {first['input']!r:.60}"


class DifferenceVerdict(ReportPart):
    """Test of a difference of two rates among all differences of the report; p-values are None without trials.

    `p` is that of the interval, `adjusted_p` Holm's over the report. `adjusted_low` and `adjusted_high` are the limits
    at the level that Holm's method leaves to this test: they exclude 0 if and only if the difference is `decided`, that
    is `adjusted_p` is below 1 - level. `smallest_p` is the smallest adjusted p-value that these people can reach.
    """

    p: float | None
    adjusted_p: float | None
    adjusted_low: float | None
    adjusted_high: float | None
    smallest_p: float | None
    decided: bool


class ModelSummary(ReportPart):
    """Evaluated model."""

    name: str
    weights_sha256: str
    classes: int


class BandCounts(ReportPart):
    """Counts by shot band."""

    many: int
    medium: int
    few: int


SHOT_BAND_NAMES = tuple(BandCounts.model_fields)
PSEUDO_SHOT_BAND_NAMES = ("many", "few", "one", "zero")


class _Accuracies(ReportPart):
    overall: OptionalRate
    many: OptionalRate
    medium: OptionalRate
    few: OptionalRate
    classes: BandCounts
    images: BandCounts


class _Rejection(ReportPart):
    method: str
    threshold: float
    threshold_from: str


class OpenEvaluation(_Accuracies, _Rejection):
    """Evaluation with rejection: accuracies of known images, open-set metrics, and the confusion by band.

    `reason` says why a metric could not be measured.
    """

    open_images: int
    open_rejected: OptionalRate
    f_measure_paper: OptionalRate
    f_measure_released: OptionalRate
    macro_f_with_unknown: OptionalRate
    auroc: OptionalRate
    aupr_known_positive: OptionalRate
    aupr_open_positive: OptionalRate
    fpr_at_95_tpr: OptionalRate
    detection_error_at_95_tpr: OptionalRate
    detection_error_minimum: OptionalRate
    oscr: OptionalRate
    reason: str | None
    confusion: dict[str, dict[str, int]]


class ExpertSummary(ReportPart):
    """Images that each expert gets right, alone (`right`), unlike the ensemble (`lost`), or wrong unlike it (`won`)."""

    images: int
    average_right: int
    right: list[int]
    lost: list[int]
    won: list[int]
    some_right: int
    none_right: int


class _AccuracyDifference(ReportPart):
    band: str
    reference_rate: float
    rate: float
    difference: float
    low: float | None
    high: float | None
    classes: int


# The fields of the last base class come first in the dump.
class AccuracyDifference(DifferenceVerdict, _AccuracyDifference):
    """Accuracy `overall`, or of a band of shots, minus that of the reference on the same images, with its test."""


class AccuracyComparison(ReportPart):
    """Paired differences to a reference model; intervals and tests treat the classes as a sample."""

    reference: str
    level: float
    differences: list[AccuracyDifference]


class _EvaluatedSplit(ReportPart):
    schema_name: Literal["facelt.evaluation/1"] = Field("facelt.evaluation/1", alias="schema")
    model: ModelSummary
    split: str
    convention: str


class EvaluationReport(ReportModel, _Accuracies, _EvaluatedSplit):
    """Report of `facelt evaluate`."""

    macro_f: OptionalRate
    ece: OptionalRate
    ece_bins: int
    open: OpenEvaluation | None
    experts: ExpertSummary | None
    comparison: AccuracyComparison | None = None


class VerificationSource(ReportPart):
    """Model or file that the embeddings come from; a file of embeddings has no kind."""

    name: str
    weights_sha256: str | None = None
    kind: str | None
    flip_averaged: bool | None


class PairPoint(ReportPart):
    """TAR at one FAR on a list of pairs, with the limits of both rates at that threshold.

    `reason` says why there is no TAR, `warning` why its threshold accepts nothing but copies or nothing at all.
    """

    wanted: float
    tar: OptionalRate
    tar_limits: list[float] | None
    far: OptionalRate
    far_limits: list[float] | None
    score: float | None
    false_matches: int | None
    supported: bool
    reason: str | None
    warning: str | None = None


class PairPoints(ReportPart):
    """Operating points on one list of pairs, and its counts; people are joined by mated pairs."""

    mated: int
    nonmated: int
    people: int
    points: list[PairPoint]


class PairSetResult(ReportPart):
    """Verification on one list of pairs: 10-fold accuracy and operating points."""

    name: str
    path: str
    mated: int
    nonmated: int
    people: int
    accuracy: OptionalRate
    accuracy_std: OptionalRate
    accuracy_folds: list[float]
    distance_folds: list[float]
    points: list[PairPoint]


class VerificationReport(ReportModel):
    """Report of `facelt verify`."""

    schema_name: Literal["facelt.verification/1"] = Field("facelt.verification/1", alias="schema")
    source: VerificationSource
    level: float
    sets: list[PairSetResult]


class RankRate(ReportPart):
    """Share of the mated searches whose mate is among the best `rank`, with its limits, clustered by identity."""

    rank: int
    rate: float
    limits: list[float] | None


class GalleryPoint(ReportPart):
    """Threshold and rates of one gallery at one FPIR."""

    threshold: float
    fpir: float
    fnir: float
    false_positives: int


class GalleriesPoint(ReportPart):
    """FNIR at one FPIR, both the means over the galleries, with the limits of FNIR at these thresholds.

    `reason` says why there is no FNIR. `supported` is false with too few non-mated searches for 30 errors.
    """

    wanted: float
    fnir: OptionalRate
    fnir_limits: list[float] | None
    fpir: OptionalRate
    supported: bool
    reason: str | None
    galleries: list[GalleryPoint]


class TemplateGallery(ReportPart):
    """Gallery of a template protocol: templates, subjects, and the searches of the probes in it."""

    name: str
    templates: int
    subjects: int
    mated: int
    nonmated: int


class TemplateIdentification(ReportPart):
    """1:N identification in two galleries: rank-k rates over all mated searches, FNIR at FPIR at rank `rank`."""

    subjects: int
    galleries: list[TemplateGallery]
    ranks: list[RankRate]
    rank: int
    points: list[GalleriesPoint]


class TemplateWeighting(ReportPart):
    """Treatment of the image features before they are averaged."""

    detector_score: bool
    normalized: bool


class IjbReport(ReportModel):
    """Report of `facelt ijb`; without the lists of 1:N there is no identification."""

    schema_name: Literal["facelt.ijb/1"] = Field("facelt.ijb/1", alias="schema")
    dataset: str
    source: VerificationSource
    weighting: TemplateWeighting
    level: float
    images: int
    media: int
    templates: int
    verification: PairPoints
    identification: TemplateIdentification | None


class TinyfaceReport(ReportModel):
    """Report of `facelt tinyface`: rank-k identification of the probes that have a mate in the gallery."""

    schema_name: Literal["facelt.tinyface/1"] = Field("facelt.tinyface/1", alias="schema")
    source: VerificationSource
    level: float
    identities: int
    probes: int
    probes_without_mate: int
    gallery_matches: int
    distractors: int
    ranks: list[RankRate]
