"""Schema of the report on known people and strangers (`facelt.known_people/1`)."""

from typing import Literal

from pydantic import Field

from facelt.report.schema import DifferenceVerdict, OptionalRate, ReportModel, ReportPart


class KnownRate(ReportPart):
    """Rate of known images with its interval, and the images and identities it is measured on."""

    rate: OptionalRate
    low: OptionalRate
    high: OptionalRate
    images: int
    identities: int


class DirPoint(ReportPart):
    """DIR at the lowest threshold that keeps a FAR, and the images of strangers accepted there.

    Without such a threshold the numbers are None and `reason` says why. `supported` is true if the strangers suffice
    for 30 errors at this FAR.
    """

    far: float
    threshold: float | None
    accepted: int | None
    rate: KnownRate | None
    supported: bool
    reason: str | None


class DirCurve(ReportPart):
    """DIR over FAR, ascending."""

    far: list[float]
    dir: list[float]


class KnownScoreResult(ReportPart):
    """Figures of one score of one model; accuracies and DIR are by band, with the band `all`."""

    model: str
    score: str
    accuracy: dict[str, KnownRate]
    dir: list[DirPoint]
    dir_by_band: dict[str, KnownRate | None]
    auroc: OptionalRate
    oscr: OptionalRate
    fpr_at_95_tpr: OptionalRate
    curve: DirCurve


class KnownModel(ReportPart):
    """Evaluated model, and the score that stands for it where there is room for one."""

    name: str
    weights_sha256: str
    classes: int
    default_score: str


class KnownCounts(ReportPart):
    """Known images of a band, and their identities."""

    images: int
    identities: int


class StrangerSource(ReportPart):
    """Images of strangers from one folder, list or record."""

    path: str
    images: int


class ReferenceScore(ReportPart):
    """Model and score that all others are compared with."""

    model: str
    score: str


class _KnownDifference(ReportPart):
    model: str
    score: str
    metric: Literal["accuracy", "dir"]
    band: str
    reference_model: str
    reference_score: str
    rate: float
    reference_rate: float
    difference: float
    low: OptionalRate
    high: OptionalRate
    identities: int


# The fields of the last base class come first in the dump.
class KnownComparison(DifferenceVerdict, _KnownDifference):
    """Paired difference of one score of one model to a reference, on the same images, with its test.

    `metric` is `accuracy` or, at the compared FAR, `dir`.
    """


class KnownPeopleReport(ReportModel):
    """Report of `facelt evaluate --open-images` without an open-set method.

    `bands` are the training images of each band as text, `definitions` the meaning of each score, `known` the counts of
    each band and of `all`.
    """

    schema_name: Literal["facelt.known_people/1"] = Field("facelt.known_people/1", alias="schema")
    title: str
    notes: list[str]
    split: str
    convention: str
    bands: dict[str, str]
    level: float
    compared_far: float
    known: dict[str, KnownCounts]
    strangers: list[StrangerSource]
    models: list[KnownModel]
    definitions: dict[str, str]
    scores: list[KnownScoreResult]
    reference: ReferenceScore
    comparisons: list[KnownComparison]
