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
from facelt.stats.permutation import holm_adjust, paired_differences


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
    statistics = config.statistics
    options = {"level": statistics.level, "permutations": statistics.replicates, "seed": statistics.seed}
    differences = paired_differences(hit_GI, other_hit_GI, trial_GI, **options)
    return [
        {
            "group": list(name),
            "rate": difference.reference_rate,
            "other_rate": difference.rate,
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "identities": difference.identities,
            "small": difference.identities < config.min_identities,
            "p": difference.p,
        }
        for name, difference in zip(grouping.names, differences, strict=True)
    ]
