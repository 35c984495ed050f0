"""From hits of probes to the numbers of a report: rates with intervals for every group, curves and CMC.

P probes, I identities, F figures, S sizes, K ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval_megaface.config import IntervalConfig
from eval_megaface.groups import Group
from eval_megaface.protocol import Hits
from eval_megaface.suite import Suite
from facelt.metrics.intervals import bootstrap_rates


def group_figures(
    suite: Suite, groups: Sequence[Group], hit_P: np.ndarray, interval: IntervalConfig
) -> list[dict[str, Any]]:
    """One figure a group: rate over its pairs, interval, counts. `hit_P` are hits of each probe, averaged over sets.

    A group without pairs has the rate None; one with pairs of fewer than two identities has no interval.
    """
    identities = len(suite.names)
    hit_FI = np.stack([np.bincount(suite.identity_P, hit_P * group.mask_P, identities) for group in groups])
    pair_FI = np.stack([np.bincount(suite.identity_P, suite.pairs_P * group.mask_P, identities) for group in groups])
    low_F, high_F = _intervals(hit_FI, pair_FI, interval)
    return [
        {
            "name": group.name,
            "group": group.group,
            "rate": float(hit_I.sum() / pair_I.sum()) if pair_I.sum() else None,
            "low": _number(low),
            "high": _number(high),
            "pairs": int(pair_I.sum()),
            "probes": int(group.mask_P.sum()),
            "identities": len(np.unique(suite.identity_P[group.mask_P])),
        }
        for group, hit_I, pair_I, low, high in zip(groups, hit_FI, pair_FI, low_F, high_F, strict=True)
    ]


def rows(
    suite: Suite, groups: Sequence[Group], hits: Hits, ranks: Sequence[int], interval: IntervalConfig
) -> list[dict[str, Any]]:
    """The report's rows: all figures among the most distractors, at each of `ranks`."""
    return [
        {
            "rank": rank,
            "distractors": hits.sizes_S[-1],
            "figures": group_figures(suite, groups, hits.hit_SPK[-1, :, rank - 1] / hits.sets_S[-1], interval),
        }
        for rank in sorted(set(ranks))
    ]


def curve(suite: Suite, hits: Hits, interval: IntervalConfig) -> dict[str, Any]:
    """Rank 1 over all pairs against the number of distractors."""
    identities = len(suite.names)
    hit_SP = hits.hit_SPK[:, :, 0] / hits.sets_S[:, None]
    hit_SI = np.stack([np.bincount(suite.identity_P, hit_P, identities) for hit_P in hit_SP])
    pair_SI = np.broadcast_to(np.bincount(suite.identity_P, suite.pairs_P, identities), hit_SI.shape)
    low_S, high_S = _intervals(hit_SI, pair_SI, interval)
    pairs = len(suite.pairs)
    return {
        "rank": 1,
        "sizes": hits.sizes_S,
        "rate": [float(hit_I.sum() / pairs) if pairs else None for hit_I in hit_SI],
        "low": [_number(low) for low in low_S],
        "high": [_number(high) for high in high_S],
    }


def cmc(suite: Suite, hits: Hits) -> dict[str, Any]:
    """The cumulative match characteristic among the most distractors."""
    hit_K = hits.hit_SPK[-1].sum(axis=0) / hits.sets_S[-1]
    pairs = len(suite.pairs)
    return {
        "distractors": hits.sizes_S[-1],
        "ranks": list(range(1, len(hit_K) + 1)),
        "rate": [float(hit / pairs) if pairs else None for hit in hit_K],
    }


def _intervals(hit_FI: np.ndarray, pair_FI: np.ndarray, interval: IntervalConfig) -> tuple[np.ndarray, np.ndarray]:
    return bootstrap_rates(hit_FI, pair_FI, replicates=interval.replicates, level=interval.level, seed=interval.seed)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
