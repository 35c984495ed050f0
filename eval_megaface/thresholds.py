"""Verification (TAR at FAR, DET) and open-set identification (FNIR at FPIR) of each model and kind.

P probes, B bins of a histogram, E enrolled images, M mated and N non-mated searches, D feature.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eval_megaface.config import OpenSetConfig
from eval_megaface.protocol import Arrays, EvaluationContext, name_bad_rows, probe_rows
from eval_megaface.sources import ModelSources, ModelVariant, content_hash
from eval_megaface.suite import Suite
from facelt.errors import UserError
from facelt.identification.error_rates import (
    MIN_SUPPORTING_ERRORS,
    OperatingPoint,
    ScoreGrid,
    ScoreHistograms,
    top_threshold_reason,
)
from facelt.identification.open_set import (
    HalfSearches,
    OpenSetPoint,
    OpenSetSearches,
    open_set_rates,
    open_set_searches,
)
from facelt.identification.verification import FARS, verification_rates
from facelt.search.exact import MatrixLike
from facelt.store.store import UNIT_KINDS
from recordio_tools.progress import ProgressFn, relabel


def measure_verification(
    context: EvaluationContext, variants: list[ModelVariant], progress: ProgressFn
) -> tuple[dict[str, Any], list[str]]:
    """Returns the report's section: all pairs of probes of one identity against all pairs of a probe and a distractor.

    Also returns the report's notes on thresholds that no score lies above.

    The distractors are the union of all lists. Finished passes are cached, with the seconds they took. Under torchrun
    every process makes the whole pass. Raises UserError naming the source and the images that cannot be scored.
    """
    suite, results, notes = context.suite, [], []
    for variant in variants:
        histograms, seconds = _score_histograms(context, variant, relabel(progress, f"{variant}, verification"))
        det, points = histograms.det(), histograms.points(FARS)
        thresholds = {f"FAR {point.wanted:g}": point.threshold for point in points if point.threshold is not None}
        notes += _threshold_notes(variant, thresholds, histograms.highest_score)
        results.append(
            variant.labels
            | {
                "points": [_verification_point(point) for point in points],
                "det": {"threshold": det.threshold_T, "fmr": det.fmr_T, "fnmr": det.fnmr_T},
                "resolution": histograms.grid.resolution,
                "seconds": seconds,
            }
        )
    # The pairs are the same for every model and kind.
    section = {
        "mated": histograms.mated,
        "nonmated": histograms.nonmated,
        "distractors": len(suite.distractor_paths),
        "smallest_far": histograms.smallest_fmr,
        "rates": results,
    }
    return section, notes


def _threshold_notes(
    variant: ModelVariant, thresholds: Mapping[str, float], highest_score: float, *, score: str = "similarity"
) -> list[str]:
    """Returns a note on the thresholds, by the rates they are set for, that no score lies above."""
    is_cosine = score == "similarity" and variant.kind in UNIT_KINDS
    by_reason: dict[str, list[str]] = {}
    for name, threshold in thresholds.items():
        if reason := top_threshold_reason(threshold, highest_score, is_cosine=is_cosine):
            by_reason.setdefault(reason, []).append(name)
    return [
        f"{variant}: the threshold of {score} for {', '.join(names)} {reason}." for reason, names in by_reason.items()
    ]


def _score_histograms(
    context: EvaluationContext, variant: ModelVariant, progress: ProgressFn
) -> tuple[ScoreHistograms, float]:
    """Returns the histograms of one pass and its seconds, from the cache if it is finished."""

    def compute(probe_PD: np.ndarray, rows_GD: MatrixLike) -> Arrays:
        cosine = variant.kind in UNIT_KINDS
        result = verification_rates(probe_PD, context.suite.identity_P, rows_GD, cosine=cosine, progress=progress)
        histograms = result.histograms
        return {
            "mated_B": histograms.mated_B,
            "nonmated_B": histograms.nonmated_B,
            "scale": np.array(histograms.grid.scale),
            "steps": np.array(histograms.grid.steps),
        }

    arrays = _cached_pass(context, variant, {"what": "verification"}, compute)
    grid = ScoreGrid(float(arrays["scale"]), int(arrays["steps"]))
    return ScoreHistograms(grid, arrays["mated_B"], arrays["nonmated_B"]), float(arrays["seconds"])


def _verification_point(point: OperatingPoint) -> dict[str, Any]:
    keys = ("wanted", "tar", "fmr", "threshold", "false_matches", "supported", "reason")
    return {key: getattr(point, key) for key in keys}


_SEARCH_ARRAYS = ("enrolled_E", "mated_M", "mate_rank_M", "mate_score_M", "nonmated_N", "best_score_N")
Reachabilities = dict[str, np.ndarray]


def read_reachabilities(suite: Suite, sources: dict[str, ModelSources]) -> tuple[Reachabilities, list[str]]:
    """Returns the reachability [P] of the probes for each model that has one, and the report's notes.

    Raises UserError naming the store and the image whose reachability is not finite.
    """
    reachabilities, notes = {}, []
    for name, source in sources.items():
        reachability_P = source.probes.reachability(suite.probe_paths)
        if reachability_P is None:
            continue
        if suite.noisy_P.any():
            notes.append(
                f"{name}: replaced probes have no reachability, so open-set search by reachability is not measured."
            )
            continue
        if not (finite_P := np.isfinite(reachability_P)).all():
            image = suite.probe_paths[int(np.argmin(finite_P))]
            raise UserError(f"{source.probes.path}: the reachability of {image!r} is not finite; embed the image again")
        reachabilities[name] = reachability_P
    return reachabilities, notes


def measure_open_set(
    context: EvaluationContext,
    variants: list[ModelVariant],
    config: OpenSetConfig,
    reachabilities: Reachabilities,
    progress: ProgressFn,
) -> tuple[dict[str, Any], list[str]]:
    """Returns the report's section: half of the identities enrolled with the distractors, then the other half.

    The distractors are the union of all lists, searched by the run's engine. Returns notes, caches and raises UserError
    as `measure_verification` does.
    """
    suite, results, notes = context.suite, [], []
    for variant in variants:
        searches, seconds = _search_halves(context, variant, config, relabel(progress, f"{variant}, open set"))
        scores = [None, reachabilities[variant.model]] if variant.model in reachabilities else [None]
        for reachability_P in scores:
            rates = open_set_rates(searches, reachability_P=reachability_P)
            for number, half in enumerate(searches.halves):
                thresholds = {
                    f"FPIR {point.wanted:g} of half {number + 1}": point.halves[number].threshold
                    for point in rates.points
                    if point.halves
                }
                highest_score = half.highest_score(reachability_P)
                notes += _threshold_notes(variant, thresholds, highest_score, score=rates.score)
            results.append(
                variant.labels
                | {
                    "score": rates.score,
                    "points": [_open_set_point(point) for point in rates.points],
                    "curve": {"fpir": rates.fpir_K, "fnir": rates.fnir_K},
                    "seconds": seconds,
                }
            )
    # Enrolment and searches are the same for every model and kind.
    fewest = min(len(half.nonmated_N) for half in searches.halves)
    section = {
        "rank": config.rank,
        "seed": config.seed,
        "enrolment": searches.enrolment,
        "distractors": len(suite.distractor_paths),
        "halves": [
            {
                "enrolled": len(half.enrolled_E),
                "gallery": half.gallery,
                "mated": len(half.mated_M),
                "nonmated": len(half.nonmated_N),
            }
            for half in searches.halves
        ],
        "smallest_fpir": MIN_SUPPORTING_ERRORS / fewest if fewest else None,
        "rates": results,
    }
    return section, notes


def _search_halves(
    context: EvaluationContext, variant: ModelVariant, config: OpenSetConfig, progress: ProgressFn
) -> tuple[OpenSetSearches, float]:
    """Returns both halves' searches and their seconds, from the cache if they are finished."""

    def compute(probe_PD: np.ndarray, rows_GD: MatrixLike) -> Arrays:
        searches = open_set_searches(
            probe_PD, context.suite.identity_P, rows_GD, rank=config.rank, seed=config.seed,
            cosine=variant.kind in UNIT_KINDS, search=context.search.top_k, progress=progress,
        )  # fmt: skip
        arrays = {}
        for number, half in enumerate(searches.halves):
            arrays |= {f"{name}_{number}": getattr(half, name) for name in _SEARCH_ARRAYS}
            arrays[f"gallery_{number}"] = np.array(half.gallery)
        return arrays

    settings = {"what": "open set", "rank": config.rank, "seed": config.seed}
    arrays = _cached_pass(context, variant, settings, compute)
    halves = tuple(
        HalfSearches(
            gallery=int(arrays[f"gallery_{number}"]), **{name: arrays[f"{name}_{number}"] for name in _SEARCH_ARRAYS}
        )
        for number in range(2)
    )
    return OpenSetSearches(halves, config.rank, config.seed), float(arrays["seconds"])


def _cached_pass(
    context: EvaluationContext,
    variant: ModelVariant,
    settings: dict[str, Any],
    compute: Callable[[np.ndarray, MatrixLike], Arrays],
) -> Arrays:
    """Returns the arrays of `compute`, with its `seconds`, from the cache if they were computed with these `settings`.

    `compute` takes the embeddings of the probes [P,D] and of all distractors [G,D].
    """
    suite, source, kind = context.suite, variant.source, variant.kind
    dependencies = {
        **settings, "kind": kind, "embeddings": source.fingerprint(kind), **context.probe_dependencies(),
        "distractors": content_hash(suite.distractor_paths),
    }  # fmt: skip
    if (arrays := context.cache.load(dependencies)) is not None:
        return arrays
    started = time.perf_counter()
    probe_PD = probe_rows(context, source.probes, kind)
    rows_GD = source.distractors.rows(kind, suite.distractor_paths)
    with name_bad_rows(kind, (source.probes, suite.probe_paths), (source.distractors, suite.distractor_paths)):
        arrays = compute(probe_PD, rows_GD)
    return context.cache.save(dependencies, arrays | {"seconds": np.array(time.perf_counter() - started)})


def _open_set_point(point: OpenSetPoint) -> dict[str, Any]:
    keys = ("wanted", "fnir", "fpir", "supported", "reason")
    halves = [
        {
            "threshold": half.threshold,
            "fpir": half.fpir,
            "fnir": half.fnir,
            "false_positives": round(half.fpir * half.nonmated),
        }
        for half in point.halves
    ]
    return {**{key: getattr(point, key) for key in keys}, "halves": halves}
