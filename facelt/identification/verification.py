"""Verification: every probe-mate pair against every probe-distractor pair, in one streamed pass.

P probes, G distractors, D feature, B rows of a block or bins of a histogram.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreHistograms
from facelt.identification.rank import MatePairs, mate_pairs
from facelt.identification.score_grid import ScoreGrid
from facelt.identification.scored_rows import longest, scored_blocks, scored_rows
from facelt.search import Rows
from facelt.search.blocks import check_dimensions

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

# Scores held at once. A histogram of half a million bins is added once for so many.
SCORES = 1 << 23
STEPS = 1 << 18


@dataclass(frozen=True, eq=False)
class Verification:
    """What one pass found. `histograms` answer for any other FAR; `histograms.smallest_fmr` is what pairs support."""

    histograms: ScoreHistograms
    points: tuple[OperatingPoint, ...]
    det: DetCurve


def verification_rates(
    probe_PD: np.ndarray,
    identity_P: np.ndarray,
    distractor_GD: Rows,
    *,
    fars: Sequence[float] = FARS,
    cosine: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Verification:
    """TAR at each FAR, and the DET curve, of all pairs of two probes of one identity against all P x G pairs.

    Each mated pair counts once, whichever image is the probe: the score is the same both ways. Scores are inner
    products or cosines; non-mated ones are float32 products, mated ones float64, both rounded to 2^-18 of the largest
    score there can be (1 for cosines, else the next power of two above the product of the largest lengths). Rates are
    counted at the thresholds named, none is interpolated; a threshold is off by the grid's resolution at most, beside
    the rounding of a float32 product. Memory is some 100 MB beside the probes, whatever G is: the P x G scores never
    exist at once.

    For inner products the distractors are read twice, first for their lengths. Raises BadRow on a row that is not
    finite or, for cosines, has length zero; UserError on unequal dimensions; ValueError on a FAR outside (0, 1].
    """
    check_dimensions(probe_PD, distractor_GD)
    if wrong := [far for far in fars if not 0 < far <= 1]:
        raise ValueError(f"a FAR of {wrong[0]} is asked for; it must be above 0 and at most 1")
    query_PD = scored_rows(probe_PD, "query", cosine=cosine)
    grid = ScoreGrid.reaching(1.0 if cosine else _largest(query_PD, distractor_GD), STEPS)
    pairs = mate_pairs(identity_P)
    once = pairs.mate_M < pairs.probe_M
    pairs = MatePairs(pairs.mate_M[once], pairs.probe_M[once])
    mated_B = grid.count(pairs.scores(np.asarray(probe_PD, dtype=np.float32), cosine=cosine))
    nonmated_B = _count_nonmated(query_PD, distractor_GD, grid, cosine, advance)
    histograms = ScoreHistograms(grid, mated_B, nonmated_B)
    return Verification(histograms, histograms.points(tuple(fars)), histograms.det())


def _count_nonmated(
    query_PD: np.ndarray, rows_GD: Rows, grid: ScoreGrid, cosine: bool, advance: Callable[[int], None] | None
) -> np.ndarray:
    count_B = np.zeros(grid.bins, dtype=np.int64)
    rows = max(1, SCORES // max(1, len(query_PD)))
    # Reused: fresh memory for each block costs as much as filling it.
    score_BP = np.empty((rows, len(query_PD)), dtype=np.float32)
    for block_BD in scored_blocks(rows_GD, rows, cosine=cosine):
        count_B += grid.count(np.matmul(block_BD, query_PD.T, out=score_BP[: len(block_BD)]))
        if advance:
            advance(len(block_BD))
    return count_B


def _largest(query_PD: np.ndarray, rows_GD: Rows) -> float:
    """A bound of all inner products, of mates as well: the longest probe times the longest row."""
    length = longest(query_PD)
    blocks = scored_blocks(rows_GD, SCORES, cosine=False)
    return length * max([length, *(longest(block_BD) for block_BD in blocks)])
