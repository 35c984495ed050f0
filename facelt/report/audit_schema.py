"""Schema of the audit report (`facelt.audit/1`)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from facelt.report.megaface_schema import OpenSetRate
from facelt.report.schema import DifferenceVerdict, OptionalRate, ReportModel, ReportPart


class Provenance(ReportPart):
    """Statements of the auditor about data and model; an empty text means not stated."""

    data: str
    consent: str
    licence: str
    model: str
    auditor: str


class Statistics(ReportPart):
    """Settings of intervals and tests; groups of fewer than `min_identities` people are not compared."""

    level: float
    alpha: float
    seed: int
    min_identities: int


class AuditNoise(ReportPart):
    """Effect of the noise lists on the audited images."""

    mode: str
    images_removed: int
    distractors_removed: int


class ShotsUsed(ReportPart):
    """Training embeddings that the pseudo-shots were counted in."""

    threshold: float
    images: int


class EmbeddingsSubject(ReportPart):
    """Audited embeddings; `failures` counts failures to enrol, `failed` lists the first of them."""

    source: Literal["embeddings"]
    images: int
    identities: int
    enrolled: int
    failures: int
    failed: list[str]
    distractors: int | None
    noise: AuditNoise
    kind: str
    score: str
    shots: ShotsUsed | None
    models: dict[str, Any]
    files: dict[str, str]


class ScoresSubject(ReportPart):
    """Audited list of scored pairs."""

    source: Literal["scores"]
    pairs: int
    identities: int
    score: str
    files: dict[str, str]


class AuditThreshold(ReportPart):
    """Threshold of one use (`pairs` or `searches`); a given threshold has no rate."""

    score: float
    kind: str
    where: str
    wanted: float | None
    rate: OptionalRate
    trials: int | None
    supported: bool | None


class CoverageSummary(ReportPart):
    """Measured coverage of such intervals in simulations: the mean and the lowest."""

    mean: float
    lowest: float


class AuditRate(ReportPart):
    """Error rate with its interval; `effective` is the number of independent trials that these are worth."""

    rate: OptionalRate
    low: OptionalRate
    high: OptionalRate
    events: float
    trials: float
    identities: int
    effective: float | None
    small: bool
    coverage: CoverageSummary | None


class OwnThreshold(ReportPart):
    """Error rates at a threshold set for one group alone."""

    wanted: float
    threshold: float | None
    fmr: OptionalRate
    fnmr: OptionalRate
    supported: bool
    reason: str | None


class ScoreDistribution(ReportPart):
    """Scores of some pairs: mean, quantiles by share, and `shift`, the mean minus that of all people's pairs."""

    pairs: int
    mean: float | None
    shift: float | None
    quantiles: dict[str, float | None]


class TimeSummary(ReportPart):
    """Response times in seconds of the images that have one."""

    images: int
    mean: float
    median: float
    quantile95: float


class AuditGroup(ReportPart):
    """Size and error rates, by metric, of one group; None for a metric that was not measured.

    `scores` are those of mated and non-mated pairs within the group.
    """

    group: list[str]
    identities: int
    images: int
    failures: int
    failure_rate: OptionalRate
    small: bool
    rates: dict[str, AuditRate | None]
    own_threshold: OwnThreshold | None
    scores: dict[str, ScoreDistribution] | None = None
    seconds: TimeSummary | None = None


class _BetweenGroups(ReportPart):
    left: list[str]
    right: list[str]


# The fields of the last base class come first in the dump.
class AcrossRate(AuditRate, _BetweenGroups):
    """FMR of pairs of one image of group `left` and one of group `right`."""


class AuditDet(ReportPart):
    """Detection error trade-off of all pairs, FMR ascending."""

    fmr: list[float]
    fnmr: list[float]
    threshold: list[float]


class _OfGroup(ReportPart):
    group: list[str]


class GroupDet(AuditDet, _OfGroup):
    """Detection error trade-off of one group."""


class DisparityEntry(ReportPart):
    """Disparity of a metric over the groups, or its `worst` rate; `at_least` marks a lower bound.

    The limits hold for all pairs of groups at once. An upper one of None with a lower one means that there is none.
    """

    figure: str
    metric: str
    by: list[str]
    value: float | None
    at_least: bool
    note: str
    low: float | None
    high: float | None


class _GroupContrast(ReportPart):
    metric: str
    by: list[str]
    first: list[str]
    second: list[str]
    identities: int
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


class ContrastEntry(DifferenceVerdict, _GroupContrast):
    """Difference of a metric between two groups of `identities` people together, with its test."""


class AuditGrouping(ReportPart):
    """Rates and disparities by one column, or by several crossed."""

    by: list[str]
    groups: list[AuditGroup]
    across: list[AcrossRate]
    det: list[GroupDet]
    disparities: list[DisparityEntry]
    contrasts: list[ContrastEntry]


class _ModelDifference(ReportPart):
    group: list[str]
    rate: OptionalRate
    other_rate: OptionalRate
    difference: float | None
    low: float | None
    high: float | None
    identities: int
    small: bool


class AgainstRow(DifferenceVerdict, _ModelDifference):
    """Rank 1 of both models in one group, and the difference (other model minus audited model), with its test."""


class AgainstGrouping(ReportPart):
    """Differences of two models by one grouping."""

    by: list[str]
    rows: list[AgainstRow]


class AgainstSection(ReportPart):
    """Comparison with another model on the same images."""

    metric: str
    other: str
    groupings: list[AgainstGrouping]


class TrainingCounts(ReportPart):
    """People and images of one shot band."""

    identities: int
    images: int


class TrainingGroup(ReportPart):
    """Training images and people of one group, in all and by shot band."""

    group: list[str]
    identities: int
    images: int
    share_of_images: float
    median_images: OptionalRate
    bands: dict[str, TrainingCounts]


class TrainingGrouping(ReportPart):
    """Training counts by one grouping."""

    by: list[str]
    groups: list[TrainingGroup]


class TrainingSection(ReportPart):
    """Composition of a training record; `not_grouped` lists groupings whose columns its table lacks."""

    record: str
    files: dict[str, str]
    images: int
    identities: int
    bands: dict[str, str]
    convention: str
    not_grouped: list[str]
    groupings: list[TrainingGrouping]


class ConditionResult(ReportPart):
    """Outcome of one --fail-if condition; `reasons` says why it fails or is undecided."""

    text: str
    state: Literal["holds", "fails", "undecided"]
    reasons: list[str]


class AuditReport(ReportModel):
    """Report of `facelt audit`; a training record alone has no `subject`, and only embeddings have an `open_set`."""

    schema_name: Literal["facelt.audit/1"] = Field("facelt.audit/1", alias="schema")
    title: str
    notes: list[str]
    provenance: Provenance
    statistics: Statistics
    subject: Annotated[EmbeddingsSubject | ScoresSubject, Field(discriminator="source")] | None
    thresholds: dict[str, AuditThreshold]
    overall: dict[str, AuditRate]
    det: AuditDet | None
    open_set: list[OpenSetRate] | None = None
    scores: dict[str, ScoreDistribution] | None = None
    seconds: TimeSummary | None = None
    groupings: list[AuditGrouping]
    against: AgainstSection | None
    training: TrainingSection | None
    conditions: list[ConditionResult]
