"""The whole audit: inputs, thresholds, every grouping, and the report (schema facelt.audit/1). P enrolled images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from facelt.auditing.against import compare
from facelt.auditing.attributes import Columns
from facelt.auditing.disparities import disparity_findings
from facelt.auditing.groups import Measured, measure
from facelt.auditing.inputs import Inputs, open_inputs
from facelt.auditing.searches import Outcomes, best_of_strangers, open_set, open_set_outcomes, rank_one
from facelt.auditing.sections import det, grouping_section, interval_kind, rate, threshold_section
from facelt.auditing.subject import Subject
from facelt.auditing.thresholds import Threshold, choose_thresholds
from facelt.auditing.training import audit_training
from facelt.config.audit import AuditConfig
from facelt.errors import UserError
from facelt.identification import OpenSetSearches
from facelt.metrics.conditions import Condition, Value, parse_condition
from facelt.metrics.contrasts import Contrast, adjusted

SCHEMA = "facelt.audit/1"
# The one group that everyone is in.
EVERYONE = "(everyone)"
# Told what is being done.
Say = Callable[[str], None]


def audit(config: AuditConfig, say: Say = lambda what: None) -> dict[str, Any]:
    """The report. Everything that can be refused without comparing anything is refused first.

    Raises UserError naming the file, the key, the line or the image at fault. A condition that cannot be decided, or
    names a figure that the report does not have, is no error here: the report says so (`undecided`).
    """
    conditions = [parse_condition(text) for text in config.fail_if]
    report = {
        "schema": SCHEMA,
        "title": config.title,
        "notes": list(config.notes),
        "provenance": config.provenance.model_dump(),
        "statistics": {**config.statistics.model_dump(), "min_identities": config.min_identities},
        "subject": None,
        "thresholds": {},
        "overall": {},
        "det": None,
        "groupings": [],
        "against": None,
        "training": None,
        "conditions": [],
    }
    if config.training.record is not None:
        say("counting the training record")
        report["training"] = audit_training(config)
    values: list[Value] = []
    if config.embeddings is not None or config.scores is not None:
        inputs = open_inputs(config)
        report["notes"] += inputs.notes
        report["subject"] = inputs.summary
        values = _measured(config, inputs, report, say)
    report["conditions"] = [_decided(condition, values) for condition in conditions]
    return report


@dataclass(frozen=True, eq=False)
class Searched:
    """What became of searches: rank 1, and both halves of the open-set searches; None of a scores file."""

    first: Outcomes
    strangers: OpenSetSearches


def _measured(config: AuditConfig, inputs: Inputs, report: dict[str, Any], say: Say) -> list[Value]:
    """Fills the report's measured sections; returns every disparity in it."""
    subject = inputs.subject
    searched = None
    if subject.embedded is not None:
        say("searching")
        searched = _search(subject, inputs, config.statistics.seed)
    say("setting thresholds")
    thresholds = choose_thresholds(config, inputs, None if searched is None else best_of_strangers(searched.strangers))
    report["thresholds"] = {use: threshold_section(threshold) for use, threshold in thresholds.items()}
    events = _events(subject, searched, thresholds)
    columns = {**inputs.columns, EVERYONE: ["all"] * len(subject.identities)}
    found: dict[tuple[str, ...], Measured] = {}
    for by in ((EVERYONE,), *inputs.groupings):
        say(f"counting by {' & '.join(by).strip('()')}")
        found[by] = _measure(config, subject, columns, by, thresholds["pairs"].score, events)
    everyone = found.pop((EVERYONE,))
    report["overall"] = {
        metric: rate(table.rows[0], interval_kind(metric), table.level) for metric, table in everyone.tables.items()
    }
    report["det"] = det(everyone.histograms.everyone)
    contrasts = _adjusted(found)
    findings = {by: disparity_findings(measured, config.statistics) for by, measured in found.items()}
    wanted = thresholds["pairs"].wanted if thresholds["pairs"].kind == "fmr" else None
    report["groupings"] = [
        grouping_section(measured, findings[by], contrasts[by], wanted) for by, measured in found.items()
    ]
    if inputs.against is not None:
        say("comparing the two models")
        other = _search(inputs.against, inputs, config.statistics.seed)
        report["against"] = compare(config, inputs, searched.first, other.first, found)
    return [one.value for several in findings.values() for one in several]


def _search(subject: Subject, inputs: Inputs, seed: int) -> Searched:
    gallery = inputs.gallery if subject is inputs.subject else inputs.against_gallery
    return Searched(rank_one(subject.embedded, gallery), open_set(subject.embedded, gallery, seed))


def _events(subject: Subject, searched: Searched | None, thresholds: Mapping[str, Threshold]) -> dict[str, Outcomes]:
    if searched is None:
        return {}
    images = int(subject.enrolled_N.sum())
    fnir, fpir = open_set_outcomes(searched.strangers, thresholds["searches"].score, images)
    return {"rank1": searched.first, "fnir": fnir, "fpir": fpir}


def _measure(config: AuditConfig, subject: Subject, columns: Columns, by, threshold: float, events) -> Measured:
    return measure(subject, columns, by, threshold, events, config.statistics, config.min_identities)


def _adjusted(found: Mapping[tuple[str, ...], Measured]) -> dict[tuple[str, ...], list[Contrast]]:
    """Holm's adjustment over every test of the report, and the contrasts by grouping again."""
    everything = adjusted([one for measured in found.values() for one in measured.contrasts])
    return {by: [one for one in everything if one.by == by] for by in found}


def _decided(condition: Condition, values: list[Value]) -> dict[str, Any]:
    """A condition held against the figures; what cannot be decided says so, and the audit is not lost for it."""
    try:
        reasons, undecided = condition.reasons(values), None
    except UserError as error:
        reasons, undecided = [], str(error)
    return {"text": condition.text, "failed": bool(reasons), "reasons": reasons, "undecided": undecided}
