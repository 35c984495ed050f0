"""Comparison of models on one suite: paired differences of their rates to those of a reference, by group.

P probes, G groups, I identities.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval_megaface.config import MegafaceConfig
from eval_megaface.protocol import Hits, sum_by_identity
from eval_megaface.sources import ModelVariant
from eval_megaface.suite import ProbeGroup, Suite, all_probes_position
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.report.megaface_comparison import difference_sentence
from facelt.stats.comparisons import PairedDifference, comparison_values, decide, paired_differences


def check_comparison(config: MegafaceConfig, kinds: dict[str, list[EmbeddingKind]]) -> None:
    """Raises UserError if the reference is not measured, or nothing but the reference; `kinds` are by model."""
    compare = config.compare
    measured = kinds[compare.reference]
    if compare.kind not in measured:
        raise UserError(
            f"compare.kind: model {compare.reference!r} has no {compare.kind!r} among its measured kinds, which are "
            f"{', '.join(measured)}"
        )
    if sum(map(len, kinds.values())) < 2:
        raise UserError(
            f"compare.reference: nothing is measured but {compare.reference!r}, {compare.kind}, so there is nothing to "
            "compare; add a model or remove compare"
        )


def compare_with_reference(
    config: MegafaceConfig, suite: Suite, groups: Sequence[ProbeGroup], hits: Mapping[ModelVariant, Hits]
) -> dict[str, Any]:
    """Returns the report's section: the rates of all other models and kinds minus those of the reference.

    All are measured on the same probes, mates and distractors, so the differences are paired; the shot bands among
    `groups` are those of the reference. p-values are adjusted over the section.
    """
    compare = config.compare
    reference = next(variant for variant in hits if (variant.model, variant.kind) == (compare.reference, compare.kind))
    rows = [
        variant.labels
        | {
            "rank": rank,
            "distractors": hits[variant].sizes_S[-1],
            "differences": _paired_differences(config, suite, groups, (hits[reference], hits[variant]), rank),
        }
        for variant in hits
        if variant is not reference
        for rank in sorted(set(config.ranks))
    ]
    pairs = [difference.pair for row in rows for difference in row["differences"]]
    verdicts = decide(pairs, level=config.interval.level)
    counts = [int(pair_I.sum()) for pair_I in sum_by_identity(suite, groups, suite.pairs_P)]
    remaining = iter(verdicts)
    for row in rows:
        row["figures"] = [
            {"name": group.name, "group": group.group, "pairs": count} | comparison_values(difference, next(remaining))
            for group, count, difference in zip(groups, counts, row.pop("differences"), strict=True)
        ]
        row["sentence"] = difference_sentence(row, f"{compare.reference} {compare.kind}", config.interval.level)
    bands = any(group.group == "shots" for group in groups)
    return {
        "reference": compare.reference,
        "kind": compare.kind,
        "shots": config.shots_reference_model(compare.reference) if bands else None,
        "tests": sum(verdict.p is not None for verdict in verdicts),
        "rows": rows,
    }


def _paired_differences(
    config: MegafaceConfig, suite: Suite, groups: Sequence[ProbeGroup], hits: tuple[Hits, Hits], rank: int
) -> list[PairedDifference]:
    """Returns the differences of all groups at one rank; `hits` are those of the reference and of the other."""
    counts_P = (*(model_hits.mean_hit_P(rank) for model_hits in hits), suite.pairs_P)
    reference_GI, hit_GI, pair_GI = (sum_by_identity(suite, groups, count_P) for count_P in counts_P)
    whole = all_probes_position(groups)
    return paired_differences(reference_GI, hit_GI, pair_GI, level=config.interval.level, whole=whole)
