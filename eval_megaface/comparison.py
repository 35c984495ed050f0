"""Comparison of models on one suite: paired differences of their rates to those of a reference, by group.

P probes, G groups, I identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import Any

from eval_megaface.config import MegafaceConfig
from eval_megaface.protocol import Hits, sum_by_identity
from eval_megaface.sources import ModelVariant
from eval_megaface.suite import ProbeGroup, Suite
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.report.megaface_comparison import difference_sentence
from facelt.stats.permutation import holm_adjust, is_decided, paired_differences


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
    `groups` are those of the reference. p-values are adjusted by Holm over the section.
    """
    compare = config.compare
    reference = next(variant for variant in hits if (variant.model, variant.kind) == (compare.reference, compare.kind))
    rows = [
        variant.labels
        | {
            "rank": rank,
            "distractors": hits[variant].sizes_S[-1],
            "figures": _paired_figures(config, suite, groups, (hits[reference], hits[variant]), rank),
        }
        for variant in hits
        if variant is not reference
        for rank in sorted(set(config.ranks))
    ]
    figures = [figure for row in rows for figure in row["figures"]]
    p_values = [figure["p"] for figure in figures]
    for figure, adjusted_p in zip(figures, holm_adjust(p_values), strict=True):
        figure["adjusted_p"] = adjusted_p
        figure["decided"] = is_decided(figure["low"], figure["high"], adjusted_p, level=config.interval.level)
    for row in rows:
        row["sentence"] = difference_sentence(row, f"{compare.reference} {compare.kind}", config.interval.level)
    bands = any(group.group == "shots" for group in groups)
    return {
        "reference": compare.reference,
        "kind": compare.kind,
        "shots": config.shots_reference_model(compare.reference) if bands else None,
        "permutations": compare.permutations,
        "seed": compare.seed,
        "tests": len(p_values) - p_values.count(None),
        "rows": rows,
    }


def _paired_figures(
    config: MegafaceConfig, suite: Suite, groups: Sequence[ProbeGroup], hits: tuple[Hits, Hits], rank: int
) -> list[dict[str, Any]]:
    """Returns the figures of all groups at one rank; `hits` are those of the reference and of the other."""
    counts_P = (*(model_hits.mean_hit_P(rank) for model_hits in hits), suite.pairs_P)
    reference_GI, hit_GI, pair_GI = (sum_by_identity(suite, groups, count_P) for count_P in counts_P)
    options = {"permutations": config.compare.permutations, "seed": config.compare.seed}
    differences = paired_differences(reference_GI, hit_GI, pair_GI, level=config.interval.level, **options)
    return [
        {"name": group.name, "group": group.group, **asdict(difference), "pairs": int(pair_I.sum())}
        for group, difference, pair_I in zip(groups, differences, pair_GI, strict=True)
    ]


def power_notes(section: Mapping[str, Any], level: float) -> list[str]:
    """Returns a note if even the smallest p-value of so few permutations is not significant after the adjustment."""
    tests, permutations = section["tests"], section["permutations"]
    if tests / (permutations + 1) < 1 - level:
        return []
    needed = ceil(tests / (1 - level))
    return [
        f"compare.permutations: {permutations:,} permutations are too few to decide a difference by {tests:,} tests; "
        f"set it to at least {needed:,}."
    ]
