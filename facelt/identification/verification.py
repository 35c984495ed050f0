"""Verification of all probe-mate pairs against all probe-distractor pairs, in one streamed pass.

P probes, G distractors, D feature, B rows of a block or bins of a histogram.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facelt.identification.all_pairs import iterate_normalized_blocks, max_norm, normalized_rows
from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreGrid, ScoreHistograms
from facelt.identification.rank import MatePairs, mate_pairs
from facelt.search.exact import MatrixLike, check_dimensions
from recordio_tools.progress import ProgressFn, no_progress

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

# Scores of one block; a histogram of half a million bins is added once per block.
MAX_PASS_SCORES = 1 << 23
_GRID_STEPS = 1 << 18


@dataclass(frozen=True, eq=False)
class Verification:
    """Operating points and DET curve of one pass; `histograms` give the operating point of any other FAR."""

    histograms: ScoreHistograms
    points: tuple[OperatingPoint, ...]
    det: DetCurve


def verification_rates(
    probe_PD: np.ndarray,
    identity_P: np.ndarray,
    distractor_GD: MatrixLike,
    *,
    fars: Sequence[float] = FARS,
    cosine: bool = False,
    progress: ProgressFn = no_progress,
) -> Verification:
    """Returns TAR at each FAR and the DET curve: mated pairs of probes against all P x G probe-distractor pairs.

    Each mated pair counts once, since its score is symmetric. Scores are inner products or cosines, float32 for
    non-mated and float64 for mated pairs, both rounded to 2^-18 of the largest possible score (1 for cosines, else the
    next power of two above the product of the largest norms). Rates are counts at actual thresholds, not interpolated;
    the error of a threshold is at most the resolution of the grid plus the rounding of a float32 product. Memory is
    about 100 MB in addition to the probes for any G.

    For inner products the distractors are read twice, first for their norms. Raises BadRow on a row that is not finite
    or, for cosines, is zero; UserError on unequal dimensions; ValueError on a FAR outside (0, 1].
    """
    check_dimensions(probe_PD, distractor_GD)
    if invalid := [far for far in fars if not 0 < far <= 1]:
        raise ValueError(f"FAR {invalid[0]}: must be above 0 and at most 1")
    query_PD = normalized_rows(probe_PD, "query", cosine=cosine)
    grid = ScoreGrid.for_bound(1.0 if cosine else _score_bound(query_PD, distractor_GD), _GRID_STEPS)
    pairs = mate_pairs(identity_P)
    is_first_M = pairs.mate_M < pairs.probe_M
    pairs = MatePairs(pairs.mate_M[is_first_M], pairs.probe_M[is_first_M])
    mated_B = grid.count(pairs.scores(np.asarray(probe_PD, dtype=np.float32), cosine=cosine))
    nonmated_B = _count_nonmated(query_PD, distractor_GD, grid, cosine, progress)
    histograms = ScoreHistograms(grid, mated_B, nonmated_B)
    return Verification(histograms, histograms.points(tuple(fars)), histograms.det())


def _count_nonmated(
    query_PD: np.ndarray, rows_GD: MatrixLike, grid: ScoreGrid, cosine: bool, progress: ProgressFn
) -> np.ndarray:
    count_B = np.zeros(grid.bins, dtype=np.int64)
    rows = max(1, MAX_PASS_SCORES // max(1, len(query_PD)))
    # Reused, since allocating fresh memory costs as much as filling it.
    score_BP = np.empty((rows, len(query_PD)), dtype=np.float32)
    done = 0
    for block_BD in iterate_normalized_blocks(rows_GD, rows, cosine=cosine):
        count_B += grid.count(np.matmul(block_BD, query_PD.T, out=score_BP[: len(block_BD)]))
        done += len(block_BD)
        progress("comparing non-mated pairs", done, rows_GD.shape[0])
    return count_B


def _score_bound(query_PD: np.ndarray, rows_GD: MatrixLike) -> float:
    """Returns a bound of all inner products: the largest norm of a probe times the largest norm of any row."""
    norm = max_norm(query_PD)
    blocks = iterate_normalized_blocks(rows_GD, MAX_PASS_SCORES, cosine=False)
    return norm * max([norm, *(max_norm(block_BD) for block_BD in blocks)])
