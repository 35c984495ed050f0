"""Verification of each model and kind over all pairs, in a pass of its own: TAR at FAR and the DET curve.

P probes, B bins of a histogram, T thresholds, D feature.

Open-set identification of each model and kind: FNIR at FPIR, by similarity and by reachability. P probes.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from eval_megaface.config import OpenSetConfig
from eval_megaface.protocol import Run, naming, probe_rows
from eval_megaface.sources import Measured, ModelSources, fingerprint
from eval_megaface.suite import Suite
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, OperatingPoint, ScoreGrid, ScoreHistograms
from facelt.identification.open_set import (
    HalfSearches,
    OpenSetPoint,
    OpenSetSearches,
    open_set_rates,
    open_set_searches,
)
from facelt.identification.verification import FARS, verification_rates
from facelt.store.store import UNIT_KINDS
from recordio_tools.progress import ProgressFn, relabel


def verification(run: Run, measured: list[Measured], progress: ProgressFn) -> dict[str, Any]:
    """The report's section: every pair of two probes of one identity against every pair of a probe and a distractor.

    The distractors are those of all lists, each once. What an earlier run finished is not done again, and keeps the
    seconds it took there. Under torchrun every process makes the whole pass. Raises UserError naming the source and
    the images that cannot be scored.
    """
    suite, rates = run.suite, []
    for one in measured:
        part = _counted(run, one.source, one.kind, relabel(progress, f"{one}, verification"))
        grid = ScoreGrid(float(part["scale"]), int(part["steps"]))
        histograms = ScoreHistograms(grid, part["mated_B"], part["nonmated_B"])
        det = histograms.det()
        rates.append(
            one.which
            | {
                "points": [_verification_point(point) for point in histograms.points(FARS)],
                "det": {"threshold": det.threshold_T.tolist(), "fmr": det.fmr_T.tolist(), "fnmr": det.fnmr_T.tolist()},
                "resolution": histograms.grid.resolution,
                "seconds": float(part["seconds"]),
            }
        )
    # The pairs are the same for every model and kind.
    return {
        "mated": histograms.mated,
        "nonmated": histograms.nonmated,
        "distractors": len(suite.distractor_paths),
        "smallest_far": histograms.smallest_fmr,
        "rates": rates,
    }


def _counted(run: Run, source: ModelSources, kind: EmbeddingKind, progress: ProgressFn) -> dict[str, np.ndarray]:
    """The histograms of one pass, from the part of an earlier run where there is one."""
    return run.parts.get(
        {
            "what": "verification", "kind": kind, "embeddings": source.fingerprint(kind), **run.probes(),
            "distractors": fingerprint(run.suite.distractor_paths),
        },
        partial(_count, run, source, kind, progress),
    )  # fmt: skip


def _count(run: Run, source: ModelSources, kind: EmbeddingKind, progress: ProgressFn) -> dict[str, np.ndarray]:
    suite, started = run.suite, time.perf_counter()
    probe_PD = probe_rows(suite, source.probes, kind, run.seed)
    rows_GD = source.distractors.rows(kind, suite.distractor_paths)
    with naming(kind, (source.probes, suite.probe_paths), (source.distractors, suite.distractor_paths)):
        found = verification_rates(probe_PD, suite.identity_P, rows_GD, cosine=kind in UNIT_KINDS, progress=progress)
    histograms = found.histograms
    return {
        "mated_B": histograms.mated_B,
        "nonmated_B": histograms.nonmated_B,
        "scale": np.array(histograms.grid.scale),
        "steps": np.array(histograms.grid.steps),
        "seconds": np.array(time.perf_counter() - started),
    }


def _verification_point(point: OperatingPoint) -> dict[str, Any]:
    return {
        "wanted": point.wanted,
        "tar": point.tar,
        "fmr": point.fmr,
        "threshold": point.threshold,
        "false_matches": point.false_matches,
        "supported": point.supported,
        "reason": point.reason,
    }


_ARRAYS = ("enrolled_E", "mated_M", "mate_rank_M", "mate_score_M", "nonmated_N", "best_score_N")
Reachabilities = dict[str, np.ndarray]


def read_reachabilities(suite: Suite, sources: dict[str, ModelSources]) -> tuple[Reachabilities, list[str]]:
    """The reachability [P] of the probes of each model that has one, and what the report must note.

    Raises UserError naming the store and the image whose reachability is not finite.
    """
    found, notes = {}, []
    for name, source in sources.items():
        reachability_P = source.probes.reachability(suite.probe_paths)
        if reachability_P is None:
            continue
        if suite.noisy_P.any():
            notes.append(f"{name}: replaced probes have no reachability, so open-set search by it is not measured.")
            continue
        if not (finite_P := np.isfinite(reachability_P)).all():
            image = suite.probe_paths[int(np.argmin(finite_P))]
            raise UserError(f"{source.probes.path}: the reachability of {image!r} is not finite; embed again")
        found[name] = reachability_P
    return found, notes


def open_set(
    run: Run, measured: list[Measured], config: OpenSetConfig, reachabilities: Reachabilities, progress: ProgressFn
) -> dict[str, Any]:
    """The report's section: half of the identities enrolled beside the distractors, then the other half.

    The distractors are those of all lists, each once, searched by the run's engine. Goes on from an earlier run and
    raises UserError as `verification` does.
    """
    suite, rates = run.suite, []
    for one in measured:
        label = f"{one}, open set"
        searches, seconds = _searched(run, one.source, one.kind, config, relabel(progress, label))
        known = [reachabilities[one.model]] if one.model in reachabilities else []
        for reachability_P in (None, *known):
            found = open_set_rates(searches, reachability_P=reachability_P)
            rates.append(
                one.which
                | {
                    "score": found.score,
                    "points": [_open_set_point(point) for point in found.points],
                    "curve": {"fpir": found.fpir_K.tolist(), "fnir": found.fnir_K.tolist()},
                    "seconds": seconds,
                }
            )
    # Who is enrolled and who searches is the same for every model and kind.
    fewest = min(len(half.nonmated_N) for half in searches.halves)
    return {
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
        "rates": rates,
    }


def _searched(
    run: Run, source: ModelSources, kind: EmbeddingKind, config: OpenSetConfig, progress: ProgressFn
) -> tuple[OpenSetSearches, float]:
    """Both halves' searches and the seconds they took, from the part of an earlier run where there is one."""
    part = run.parts.get(
        {
            "what": "open set", "kind": kind, "embeddings": source.fingerprint(kind), **run.probes(),
            "distractors": fingerprint(run.suite.distractor_paths), "rank": config.rank, "seed": config.seed,
        },
        partial(_search, run, source, kind, config, progress),
    )  # fmt: skip
    halves = tuple(
        HalfSearches(gallery=int(part[f"gallery_{half}"]), **{name: part[f"{name}_{half}"] for name in _ARRAYS})
        for half in range(2)
    )
    return OpenSetSearches(halves, config.rank, config.seed), float(part["seconds"])


def _search(
    run: Run, source: ModelSources, kind: EmbeddingKind, config: OpenSetConfig, progress: ProgressFn
) -> dict[str, np.ndarray]:
    suite, started = run.suite, time.perf_counter()
    probe_PD = probe_rows(suite, source.probes, kind, run.seed)
    rows_GD = source.distractors.rows(kind, suite.distractor_paths)
    with naming(kind, (source.probes, suite.probe_paths), (source.distractors, suite.distractor_paths)):
        searches = open_set_searches(
            probe_PD, suite.identity_P, rows_GD, rank=config.rank, seed=config.seed, cosine=kind in UNIT_KINDS,
            search=run.search.top_k, progress=progress,
        )  # fmt: skip
    part = {f"{name}_{half}": getattr(one, name) for half, one in enumerate(searches.halves) for name in _ARRAYS}
    part |= {f"gallery_{half}": np.array(one.gallery) for half, one in enumerate(searches.halves)}
    return part | {"seconds": np.array(time.perf_counter() - started)}


def _open_set_point(point: OpenSetPoint) -> dict[str, Any]:
    halves = [
        {
            "threshold": half.threshold,
            "fpir": half.fpir,
            "fnir": half.fnir,
            "false_positives": round(half.fpir * half.nonmated),
        }
        for half in point.halves
    ]
    return {
        "wanted": point.wanted,
        "fnir": point.fnir,
        "fpir": point.fpir,
        "supported": point.supported,
        "reason": point.reason,
        "halves": halves,
    }
