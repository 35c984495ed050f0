"""Schema of the MegaFace report (`facelt.megaface/1`)."""

from typing import Any, Literal

from pydantic import Field

from facelt.report.schema import DifferenceVerdict, OptionalRate, ReportModel, ReportPart


class ScoreCurve(ReportPart):
    """Detection error trade-off: error rates at each threshold."""

    threshold: list[float]
    fmr: list[float]
    fnmr: list[float]


class NoiseCounts(ReportPart):
    """Effect of the noise lists on the suite."""

    mode: str
    probes_removed: int
    distractors_removed: int
    probes_replaced: int


class MegafaceSuite(ReportPart):
    """Size of the measured suite, and the SHA-256 of its files."""

    probes: int
    identities: int
    pairs: int
    distractors: int
    sizes: list[int]
    sets: list[int]
    noise: NoiseCounts
    files: dict[str, str]


class ShotsSummary(ReportPart):
    """Definition of the pseudo-shot bands: similarity threshold, model whose embeddings are counted, band limits."""

    threshold: float
    reference: str
    bands: dict[str, str]


class IntervalSummary(ReportPart):
    """Method of the confidence intervals."""

    level: float
    method: str


class GroupFigure(ReportPart):
    """Identification rate of one group of probes, with its interval and counts."""

    name: str
    group: str
    rate: OptionalRate
    low: OptionalRate
    high: OptionalRate
    pairs: int
    probes: int
    identities: int


class MegafaceRow(ReportPart):
    """Rates of all groups, for one model and kind at one rank and gallery size."""

    model: str
    kind: str
    rank: int
    distractors: int
    figures: list[GroupFigure]


class _GroupDifference(ReportPart):
    name: str
    group: str
    reference_rate: OptionalRate
    rate: OptionalRate
    difference: OptionalRate
    low: OptionalRate
    high: OptionalRate
    pairs: int
    identities: int


# The fields of the last base class come first in the dump.
class PairedFigure(DifferenceVerdict, _GroupDifference):
    """Rate of one group of probes minus the reference's, with its interval and its test."""


class ComparisonRow(ReportPart):
    """Differences of all groups, for one model and kind at one rank; `sentence` states that of all probes."""

    model: str
    kind: str
    rank: int
    distractors: int
    figures: list[PairedFigure]
    sentence: str


class ComparisonSection(ReportPart):
    """Paired differences to the `kind` of the model `reference` on the same probes.

    `shots` is the model whose similarities define the shot bands, None without any; `tests` counts the p-values.
    """

    reference: str
    kind: str
    shots: str | None
    tests: int
    rows: list[ComparisonRow]


class SizeCurve(ReportPart):
    """Rate against the number of distractors."""

    model: str
    kind: str
    rank: int
    sizes: list[int]
    rate: list[OptionalRate]
    low: list[OptionalRate]
    high: list[OptionalRate]


class CmcCurve(ReportPart):
    """Cumulative match characteristic: rate against rank."""

    model: str
    kind: str
    distractors: int
    ranks: list[int]
    rate: list[OptionalRate]


class VerificationPoint(ReportPart):
    """TAR at one FAR. `supported`: the pairs suffice for 30 errors at that FAR; `reason` says why there is no TAR."""

    wanted: float
    tar: OptionalRate
    fmr: OptionalRate
    threshold: float | None
    false_matches: int | None
    supported: bool
    reason: str | None


class VerificationResult(ReportPart):
    """Verification of one model and kind; `resolution` bounds the error of a threshold."""

    model: str
    kind: str
    points: list[VerificationPoint]
    det: ScoreCurve
    resolution: float
    seconds: float


class VerificationSection(ReportPart):
    """Verification over all pairs; `smallest_far` is the lowest FAR at which 30 errors are possible."""

    mated: int
    nonmated: int
    distractors: int
    smallest_far: OptionalRate
    rates: list[VerificationResult]


class HalfPoint(ReportPart):
    """Operating point of one half of the open-set searches."""

    threshold: float
    fpir: OptionalRate
    fnir: OptionalRate
    false_positives: int


class OpenSetRate(ReportPart):
    """FNIR at one FPIR, the mean of both halves."""

    wanted: float
    fnir: OptionalRate
    fpir: OptionalRate
    supported: bool
    reason: str | None
    halves: list[HalfPoint]


class OpenSetCurve(ReportPart):
    """FNIR against FPIR."""

    fpir: list[float]
    fnir: list[float]


class OpenSetResult(ReportPart):
    """Open-set identification of one model, kind and score (similarity or reachability)."""

    model: str
    kind: str
    score: str
    points: list[OpenSetRate]
    curve: OpenSetCurve
    seconds: float


class HalfCounts(ReportPart):
    """Images and searches of one enrolled half."""

    enrolled: int
    gallery: int
    mated: int
    nonmated: int


class OpenSetSection(ReportPart):
    """Open-set identification, half of the identities enrolled at a time."""

    rank: int
    seed: int
    enrolment: str
    distractors: int
    halves: list[HalfCounts]
    smallest_fpir: OptionalRate
    rates: list[OpenSetResult]


class MegafaceReport(ReportModel):
    """Report of `facelt megaface`; `models` describes each model's files as their stores do."""

    schema_name: Literal["facelt.megaface/1"] = Field("facelt.megaface/1", alias="schema")
    title: str
    notes: list[str]
    suite: MegafaceSuite
    shots: ShotsSummary
    interval: IntervalSummary
    rows: list[MegafaceRow]
    curves: list[SizeCurve]
    cmc: list[CmcCurve]
    comparison: ComparisonSection | None = None
    verification: VerificationSection | None = None
    open_set: OpenSetSection | None = None
    models: dict[str, Any]
