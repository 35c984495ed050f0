"""Comparison of two models on the same images: paired differences of rank 1 by group.

P enrolled images, U units, G groups, I identities.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from facelt.audit.inputs import AuditInputs
from facelt.audit.measure import SearchOutcomes
from facelt.config.audit import AuditConfig
from facelt.stats.comparisons import PairedDifference, comparison_values, decide, paired_differences
from facelt.stats.groups import Units


def compare_models(
    config: AuditConfig,
    inputs: AuditInputs,
    first: SearchOutcomes,
    second: SearchOutcomes,
    groupings: Iterable[tuple[str, ...]],
) -> dict[str, Any]:
    """Returns the report section `against`: rank 1 of the audited and of the other model, and their difference.

    Intervals account for the correlation of the models over identities; p-values are adjusted over the section.
    """
    groups = [
        (by, *entry)
        for by in groupings
        for entry in _compare_by_group(config, inputs.enrolled_units(by), by, first, second)
    ]
    sections = {by: {"by": list(by), "rows": []} for by, *_ in groups}
    verdicts = decide([difference.pair for *_, difference in groups], level=config.statistics.level)
    for (by, name, difference), verdict in zip(groups, verdicts, strict=True):
        row = comparison_values(difference, verdict)
        row["other_rate"], row["rate"] = row.pop("rate"), row.pop("reference_rate")
        is_small = difference.identities < config.min_identities
        sections[by]["rows"].append({"group": list(name), "small": is_small, **row})
    return {"metric": "rank1", "other": str(config.against.path), "groupings": list(sections.values())}


def _compare_by_group(
    config: AuditConfig, units: Units, by: tuple[str, ...], first: SearchOutcomes, second: SearchOutcomes
) -> list[tuple[tuple[str, ...], PairedDifference]]:
    """Returns the name of each group and the difference in it."""
    grouping = units.grouping(by)
    hit_GI, other_hit_GI, trial_GI = (
        units.sum_by_group(np.bincount(units.unit_N, weights=count_P, minlength=len(units)), grouping)
        for count_P in (first.event_P, second.event_P, first.trial_P)
    )
    differences = paired_differences(hit_GI, other_hit_GI, trial_GI, level=config.statistics.level)
    return list(zip(grouping.names, differences, strict=True))
