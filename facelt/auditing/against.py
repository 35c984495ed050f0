"""Two models on the same images: differences of rank 1 by group, by identity. U units, G groups, I identities."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from facelt.auditing.groups import Measured
from facelt.auditing.inputs import Inputs
from facelt.auditing.searches import Outcomes
from facelt.config.audit import AuditConfig
from facelt.metrics.clustered import TouchedCounts, rate_intervals
from facelt.metrics.groups import Grouping, Units
from facelt.metrics.permutation import holm, swap_chance


def compare(
    config: AuditConfig,
    inputs: Inputs,
    first: Outcomes,
    second: Outcomes,
    measured: Mapping[tuple[str, ...], Measured],
) -> dict[str, Any]:
    """The section `against`: by group, rank 1 of the audited model, of the other one, and their difference.

    Intervals take both models' correlation over identities into account; p values are of identities swapping models,
    adjusted by Holm over the section.
    """
    subject = inputs.subject
    groupings = []
    for by in measured:
        units = Units.of(
            subject.enrolled(subject.identities), {name: subject.enrolled(inputs.columns[name]) for name in by}
        )
        rows = _rows(config, units, units.grouping(by), first, second)
        groupings.append({"by": list(by), "rows": rows})
    every = [row for grouping in groupings for row in grouping["rows"]]
    for row, value in zip(every, holm([row["p"] for row in every]), strict=True):
        row["adjusted_p"] = value
    return {"metric": "rank1", "other": str(config.against.path), "groupings": groupings}


def _rows(
    config: AuditConfig, units: Units, grouping: Grouping, first: Outcomes, second: Outcomes
) -> list[dict[str, Any]]:
    statistics, groups = config.statistics, len(grouping)
    hit_2GI, trial_GI = _by_group(units, grouping, first, second)
    counts = TouchedCounts.of_searches(np.concatenate(hit_2GI), np.concatenate([trial_GI, trial_GI]))
    intervals = rate_intervals(counts, level=statistics.level)
    rows = []
    for g, name in enumerate(grouping.names):
        low, high = intervals.difference(groups + g, g)
        draws = {"permutations": statistics.replicates, "seed": statistics.seed}
        chance = swap_chance(hit_2GI[0][g], hit_2GI[1][g], trial_GI[g], **draws)
        rows.append(
            {
                "group": list(name),
                "rate": intervals.rate_F[g],
                "other_rate": intervals.rate_F[groups + g],
                "difference": intervals.rate_F[groups + g] - intervals.rate_F[g],
                "low": low,
                "high": high,
                "identities": int(intervals.identities_F[g]),
                "small": bool(intervals.identities_F[g] < config.min_identities),
                "p": None if chance is None else asdict(chance)["p"],
            }
        )
    return rows


def _by_group(
    units: Units, grouping: Grouping, first: Outcomes, second: Outcomes
) -> tuple[list[np.ndarray], np.ndarray]:
    count_3U = [
        np.bincount(units.unit_N, weights=count_P, minlength=len(units))
        for count_P in (first.event_P, second.event_P, first.trial_P)
    ]
    hit_GI, other_GI, trial_GI = (units.per_group(count_U, grouping) for count_U in count_3U)
    return [hit_GI, other_GI], trial_GI
