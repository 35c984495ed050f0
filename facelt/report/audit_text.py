"""Audit report in words: names of metrics and disparities, sentences about gaps, the model-card paragraph."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from facelt.report.audit_schema import (
    AgainstRow,
    AuditGrouping,
    AuditRate,
    AuditReport,
    AuditThreshold,
    ContrastEntry,
    DisparityEntry,
    EmbeddingsSubject,
    TrainingGrouping,
)
from facelt.report.formatting import (
    EN_DASH,
    interval_end,
    is_undecidable,
    p_value,
    small_percent,
    small_percent_interval,
    three_digits,
)
from facelt.report.schema import PSEUDO_SHOT_BAND_NAMES


@dataclass(frozen=True)
class Metric:
    """Short and long name of a metric, and the noun of its trials."""

    short: str
    long: str
    trials: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "rank1": Metric("Rank 1", "rank-1 rate", "pairs"),
        "fnir": Metric("FNIR", "false negative identification rate", "searches"),
        "fpir": Metric("FPIR", "false positive identification rate", "searches"),
        "fmr": Metric("FMR", "false match rate", "non-mated pairs"),
        "fnmr": Metric("FNMR", "false non-match rate", "mated pairs"),
        "rank1_miss": Metric("1 - rank 1", "share of pairs missed at rank 1", "pairs"),
        "fmr_fnmr": Metric("FMR and FNMR", "both match errors", "pairs"),
    }
)
DISPARITY_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "worst": "Worst group",
        "gap": "Largest gap",
        "ratio": "Largest ratio",
        "max_over_geometric_mean": "Max over geometric mean",
        "gini": "Gini",
        "fdr": "FDR",
        "inequity": "Inequity rate",
        "garbe": "GARBE",
    }
)
# Units of the figures that are rates; the others are numbers.
_UNITS = MappingProxyType({"worst": "%", "gap": "points"})


def group_name(values: list[str]) -> str:
    """Returns the name of a group, as `female & 30-<45`."""
    return " & ".join(values)


def group_order(by: list[str], values: list[str]) -> tuple:
    """Returns a sort key: groups by name, shot bands from many to zero."""
    bands = [
        PSEUDO_SHOT_BAND_NAMES.index(value) if name == "shots" and value in PSEUDO_SHOT_BAND_NAMES else -1
        for name, value in zip(by, values, strict=True)
    ]
    return tuple(zip(bands, values, strict=True))


def disparity_text(disparity: DisparityEntry) -> str:
    """Returns a disparity as text: per cent for a rate, points for a gap, a number; `at least` for a lower bound."""
    if disparity.value is None:
        return EN_DASH
    unit = _UNITS.get(disparity.figure)
    text = f"{small_percent(disparity.value)} {unit}" if unit else three_digits(disparity.value)
    return f"at least {text}" if disparity.at_least else text


def disparity_interval(disparity: DisparityEntry) -> str:
    """Returns the interval of a disparity as text, `or more` without an upper limit, empty if it has none."""
    low, high = disparity.low, disparity.high
    if low is None and high is None:
        return ""
    if disparity.figure in _UNITS:
        return small_percent_interval(low, high)
    if high is None:
        return f"{three_digits(low)} or more"
    return f"{three_digits(low)}{EN_DASH}{three_digits(high)}"


def significance_text(difference: ContrastEntry | AgainstRow, level: float) -> str:
    """Returns the verdict on a difference; it is undecidable if so few people cannot reach a p-value below 1 - level.

    An undecidable one is named with its people and the smallest adjusted p-value that they can reach.
    """
    if difference.adjusted_p is None:
        return "nothing to compare"
    if difference.decided:
        return f"significant at {100 * (1 - level):g} %"
    if not is_undecidable(difference.smallest_p, level):
        return f"not significant at {100 * (1 - level):g} %"
    people = f"{difference.identities:,} {'person' if difference.identities == 1 else 'people'}"
    return f"undecidable with {people}: the smallest adjusted p they can reach is {p_value(difference.smallest_p)}"


def table_verdict(difference: ContrastEntry | AgainstRow, level: float) -> str:
    """Returns the verdict on a difference for a column of tables: `yes`, `no`, or the text of `significance_text`."""
    if difference.adjusted_p is None or is_undecidable(difference.smallest_p, level):
        return significance_text(difference, level)
    return "yes" if difference.decided else "no"


def largest_gaps(grouping: AuditGrouping, level: float) -> list[str]:
    """Returns a sentence about the largest gap of each metric, rank 1 first; none if no groups can be compared."""
    sentences = []
    for metric in METRICS:
        contrasts = [contrast for contrast in grouping.contrasts if contrast.metric == metric]
        if contrasts:
            rates = {tuple(group.group): group.rates[metric] for group in grouping.groups}
            sentences.append(_gap_sentence(max(contrasts, key=lambda contrast: contrast.difference), rates, level))
    return sentences


def _gap_sentence(contrast: ContrastEntry, rates: Mapping[tuple, AuditRate], level: float) -> str:
    first, second = group_name(contrast.first), group_name(contrast.second)
    high, low = (small_percent(rates[tuple(group)].rate) for group in (contrast.first, contrast.second))
    adjusted = f"{interval_end(contrast.adjusted_low)} to {interval_end(contrast.adjusted_high)}"
    return (
        f"{METRICS[contrast.metric].long}: {first} {high} %, {second} {low} %, a gap of "
        f"{small_percent(contrast.difference)} points ({100 * level:g} % interval of the difference "
        f"{interval_end(contrast.low)} to {interval_end(contrast.high)}, p = {p_value(contrast.p)}; adjusted for all "
        f"differences of the report {adjusted}, p = {p_value(contrast.adjusted_p)}): "
        f"{significance_text(contrast, level)}."
    )


def threshold_text(threshold: AuditThreshold) -> str:
    """Returns a threshold, the set it was chosen on, and its error rate there."""
    if threshold.kind == "given":
        return f"{threshold.score:.4g}, {threshold.where}"
    rate = threshold.kind.upper()
    text = (
        f"{threshold.score:.4f}, set on {threshold.where} for {rate} {small_percent(threshold.wanted)} %; "
        f"{rate} there is {small_percent(threshold.rate)} % of {threshold.trials:,}"
    )
    return text if threshold.supported else f"{text}, too few for 30 errors at that rate"


def model_card(report: AuditReport) -> str:
    """Returns one plain-text paragraph for a model card; for a training record alone, its composition."""
    level, subject, sentences = report.statistics.level, report.subject, []
    if subject is not None:
        units = f"{subject.images:,} images" if isinstance(subject, EmbeddingsSubject) else f"{subject.pairs:,} pairs"
        data = f" ({report.provenance.data})" if report.provenance.data else ""
        sentences.append(
            f"Error rates were measured by group on {units} of {subject.identities:,} people{data}, "
            "at one threshold for all groups."
        )
        sentences += [f"Threshold for {use}: {threshold_text(value)}." for use, value in report.thresholds.items()]
        for grouping in report.groupings:
            if "shots" not in grouping.by:
                gaps = " ".join(capitalized(sentence) for sentence in largest_gaps(grouping, level))
                sentences.append(
                    f"By {' and '.join(grouping.by)}: {gaps or 'fewer than two groups are large enough to compare.'}"
                )
    if training := report.training:
        sentences.append(f"The training record holds {training.images:,} images of {training.identities:,} people:")
        sentences += [_training_sentence(grouping) for grouping in training.groupings]
    sentences.append(
        "Attributes come from lists, not from the people themselves; the absence of a significant gap does not prove "
        "that there is none."
    )
    return " ".join(sentences)


def _training_sentence(grouping: TrainingGrouping) -> str:
    shares = ", ".join(
        f"{group_name(group.group)} {small_percent(group.share_of_images)} % of the images "
        f"({group.identities:,} people)"
        for group in grouping.groups
    )
    return f"{shares}."


def capitalized(sentence: str) -> str:
    """Returns the sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]
