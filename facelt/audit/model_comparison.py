"""Comparison of two models on the same images: paired differences of rank 1 by group.

P enrolled images, U units, G groups, I identities.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from facelt.audit.inputs import AuditInputs
from facelt.audit.measure import SearchOutcomes
from facelt.config.audit import AuditConfig
from facelt.stats.groups import Units
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.stats.permutation import holm_adjust, paired_permutation_test


def compare_models(
    config: AuditConfig,
    inputs: AuditInputs,
    first: SearchOutcomes,
    second: SearchOutcomes,
    groupings: Iterable[tuple[str, ...]],
) -> dict[str, Any]:
    """Returns the report section `against`: rank 1 of the audited and of the other model, and their difference.

    Intervals account for the correlation of the models over identities; p-values are of a paired permutation test,
    adjusted by Holm over the section.
    """
    sections = [
        {"by": list(by), "rows": _compare_by_group(config, inputs.enrolled_units(by), by, first, second)}
        for by in groupings
    ]
    rows = [row for section in sections for row in section["rows"]]
    for row, adjusted in zip(rows, holm_adjust([row["p"] for row in rows]), strict=True):
        row["adjusted_p"] = adjusted
    return {"metric": "rank1", "other": str(config.against.path), "groupings": sections}


def _compare_by_group(
    config: AuditConfig, units: Units, by: tuple[str, ...], first: SearchOutcomes, second: SearchOutcomes
) -> list[dict[str, Any]]:
    grouping = units.grouping(by)
    hit_GI, other_hit_GI, trial_GI = (
        units.sum_by_group(np.bincount(units.unit_N, weights=count_P, minlength=len(units)), grouping)
        for count_P in (first.event_P, second.event_P, first.trial_P)
    )
    counts = ClusteredCounts.by_identity(np.concatenate([hit_GI, other_hit_GI]), np.concatenate([trial_GI, trial_GI]))
    intervals = rate_intervals(counts, level=config.statistics.level)
    draws = {"permutations": config.statistics.replicates, "seed": config.statistics.seed}
    rows = []
    for g, name in enumerate(grouping.names):
        other_index = len(grouping) + g
        low, high = intervals.difference(other_index, g)
        test = paired_permutation_test(hit_GI[g], other_hit_GI[g], trial_GI[g], **draws)
        rows.append(
            {
                "group": list(name),
                "rate": intervals.rate_F[g],
                "other_rate": intervals.rate_F[other_index],
                "difference": intervals.rate_F[other_index] - intervals.rate_F[g],
                "low": low,
                "high": high,
                "identities": int(intervals.identities_F[g]),
                "small": bool(intervals.identities_F[g] < config.min_identities),
                "p": None if test is None else test.p,
            }
        )
    return rows
