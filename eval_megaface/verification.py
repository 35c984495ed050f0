"""Verification of each model and kind over all pairs, in a pass of its own: TAR at FAR and the DET curve.

P probes, B bins of a histogram, T thresholds, D feature.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from eval_megaface.config import Kind
from eval_megaface.coverage import fingerprint
from eval_megaface.protocol import Advance, Begin, Run, naming, probe_rows
from eval_megaface.sources import Measured, ModelSources
from facelt.identification import FARS, OperatingPoint, ScoreHistograms, verification_rates
from facelt.identification.score_grid import ScoreGrid
from facelt.store import UNIT_KINDS


def verification(run: Run, measured: list[Measured], begin: Begin) -> dict[str, Any]:
    """The report's section: every pair of two probes of one identity against every pair of a probe and a distractor.

    The distractors are those of all lists, each once. What an earlier run finished is not done again, and keeps the
    seconds it took there. Under torchrun every process makes the whole pass. Raises UserError naming the source and
    the images that cannot be scored.
    """
    suite, rates = run.suite, []
    for one in measured:
        advance = begin(f"{one}, verification", len(suite.distractor_paths))
        part = _counted(run, one.source, one.kind, advance)
        grid = ScoreGrid(float(part["scale"]), int(part["steps"]))
        histograms = ScoreHistograms(grid, part["mated_B"], part["nonmated_B"])
        det = histograms.det()
        rates.append(
            one.which
            | {
                "points": [_point(point) for point in histograms.points(FARS)],
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


def _counted(run: Run, source: ModelSources, kind: Kind, advance: Advance) -> dict[str, np.ndarray]:
    """The histograms of one pass, from the part of an earlier run where there is one."""
    return run.parts.get(
        {
            "what": "verification", "kind": kind, "embeddings": source.fingerprint(kind), **run.probes(),
            "distractors": fingerprint(run.suite.distractor_paths),
        },
        partial(_count, run, source, kind, advance),
    )  # fmt: skip


def _count(run: Run, source: ModelSources, kind: Kind, advance: Advance) -> dict[str, np.ndarray]:
    suite, started = run.suite, time.perf_counter()
    probe_PD = probe_rows(suite, source.probes, kind, run.seed)
    rows_GD = source.distractors.rows(kind, suite.distractor_paths)
    with naming(kind, (source.probes, suite.probe_paths), (source.distractors, suite.distractor_paths)):
        found = verification_rates(probe_PD, suite.identity_P, rows_GD, cosine=kind in UNIT_KINDS, advance=advance)
    histograms = found.histograms
    return {
        "mated_B": histograms.mated_B,
        "nonmated_B": histograms.nonmated_B,
        "scale": np.array(histograms.grid.scale),
        "steps": np.array(histograms.grid.steps),
        "seconds": np.array(time.perf_counter() - started),
    }


def _point(point: OperatingPoint) -> dict[str, Any]:
    return {
        "wanted": point.wanted,
        "tar": point.tar,
        "fmr": point.fmr,
        "threshold": point.threshold,
        "false_matches": point.false_matches,
        "supported": point.supported,
        "reason": point.reason,
    }
