"""Match errors of all pairs of a set at fixed thresholds, by the sets of images (units) of both sides.

A pair is mated when both images are of one identity; it matches when it scores at or above the threshold.

N images, U units, T thresholds, D feature, M pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.errors import UserError
from facelt.identification.all_pairs import pairs_at_or_above, rounding, triangle
from facelt.identification.scored_rows import longest, scored_rows
from facelt.metrics.groups import Units
from facelt.metrics.pair_counts import UnitPairs

# Counts by both units, 8 bytes each, for every threshold and for the trials.
MOST_CELLS = 1 << 26


@dataclass(frozen=True, eq=False)
class PairErrors:
    """At each of the T thresholds: false non-matches of mated and false matches of non-mated pairs, by unit."""

    threshold_T: np.ndarray
    mated: tuple[UnitPairs, ...]
    non_mated: tuple[UnitPairs, ...]


def pair_errors(
    embedding_ND: np.ndarray,
    units: Units,
    thresholds: Sequence[float],
    *,
    cosine: bool = False,
    advance: Callable[[int], None] | None = None,
) -> PairErrors:
    """Count the errors of all N (N - 1) / 2 pairs, by inner product or cosine; exact, as if all scores were float64.

    Two images of a fixed unit (see `Units`) are nobody's and make a non-mated pair. Memory: the embeddings twice as
    float32, 8 (T + 1) U^2 bytes, and a block of scores. `advance(rows)` is called as rows of the N x N triangle are
    done.

    Raises BadRow on a row that is not finite or, for cosines, has length zero; UserError on too many units; ValueError
    unless there are as many embeddings as images and all thresholds are finite.
    """
    threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if len(embedding_ND) != len(units.unit_N):
        raise ValueError(f"{len(embedding_ND)} embeddings for {len(units.unit_N)} images")
    if not np.isfinite(threshold_T).all():
        raise ValueError(f"the thresholds {threshold_T.tolist()} must be finite")
    if (len(threshold_T) + 1) * len(units) ** 2 > MOST_CELLS:
        raise UserError(
            f"{len(units):,} sets of images of one identity and one group are too many to compare with each other at "
            f"{len(threshold_T)} thresholds: group by fewer columns, or audit a sample of identities"
        )
    match_TUU = _matches(embedding_ND, units, threshold_T, cosine, advance)
    image_U = np.bincount(units.unit_N, minlength=len(units)).astype(np.int64)
    trial_UU = np.outer(image_U, image_U)
    np.fill_diagonal(trial_UU, image_U * (image_U - 1))
    return _split(match_TUU, trial_UU, units, threshold_T)


def _matches(embedding_ND, units: Units, threshold_T: np.ndarray, cosine: bool, advance) -> np.ndarray:
    """Matching pairs by both units, symmetric int64 [T,U,U], those within a unit twice."""
    size = len(units)
    raw_ND = np.asarray(embedding_ND, dtype=np.float32)
    row_ND = scored_rows(raw_ND, "query", cosine=cosine)
    length = 1.0 if cosine else longest(row_ND)
    slack = rounding(raw_ND.shape[1], length)
    match_TUU = np.zeros((len(threshold_T), size, size), dtype=np.int64)
    for start, score_BC in triangle(row_ND, [], -np.inf, advance):
        for match_UU, threshold in zip(match_TUU, threshold_T, strict=True):
            row_M, column_M = pairs_at_or_above(score_BC, start, threshold, slack, raw_ND, cosine=cosine)
            # The units of this block's rows only: a table of all would be cleared for each block.
            unit_K, place_B = np.unique(units.unit_N[start : start + len(score_BC)], return_inverse=True)
            key_M = place_B[row_M - start] * size + units.unit_N[column_M]
            match_UU[unit_K] += np.bincount(key_M, minlength=len(unit_K) * size).reshape(len(unit_K), size)
    for match_UU in match_TUU:
        match_UU += match_UU.T
    return match_TUU


def _split(match_TUU: np.ndarray, trial_UU: np.ndarray, units: Units, threshold_T: np.ndarray) -> PairErrors:
    from scipy.sparse import coo_array

    # Units of one identity, as positions of the cells where they meet.
    order_U = np.argsort(units.identity_U, kind="stable")
    image_I = np.bincount(units.identity_U)
    first_I = np.cumsum(image_I) - image_I
    size_U = image_I[units.identity_U]
    left_M = np.repeat(np.arange(len(units)), size_U)
    within_M = np.arange(len(left_M)) - np.repeat(np.cumsum(size_U) - size_U, size_U)
    right_M = order_U[first_I[units.identity_U[left_M]] + within_M]
    own_M = ~(units.fixed_U[left_M] | units.fixed_U[right_M])
    same = left_M[own_M], right_M[own_M]

    def sparse(count_M: np.ndarray):
        return coo_array((count_M, same), shape=trial_UU.shape).tocsr()

    mated_trial_M = trial_UU[same]
    trial = sparse(mated_trial_M)
    mated = tuple(UnitPairs(sparse(mated_trial_M - match_UU[same]), trial, mated=True) for match_UU in match_TUU)
    for table_UU in (trial_UU, *match_TUU):
        table_UU[same] = 0
    return PairErrors(threshold_T, mated, tuple(UnitPairs(match_UU, trial_UU, mated=False) for match_UU in match_TUU))
