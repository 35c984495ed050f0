"""Match errors of compared pairs at fixed thresholds, added up block by block into counts of units of images.

A pair matches at a threshold when it scores at least that much. A mated pair that does not match is a false non-match,
a non-mated pair that matches a false match (ISO/IEC 19795-1).

M pairs of a block, N images, T thresholds, U units, G groups, F figures (pairs of groups), I identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from facelt.errors import UserError
from facelt.metrics.clustered import TouchedCounts
from facelt.metrics.groups import Grouping, Units

# Non-mated counts are kept whole, 8 bytes a pair of units, for the trials and for the errors at each threshold.
_MOST_CELLS = 1 << 27


@dataclass(frozen=True, eq=False)
class UnitPairs:
    """Errors among trials of mated or of non-mated pairs by the units of both sides: symmetric, [U,U].

    No pair has a first side: one of two units is counted in both of their cells, one within a unit twice in its cell,
    so that a sum over all cells counts each pair twice. Mated counts are sparse.
    """

    error_UU: np.ndarray
    trial_UU: np.ndarray
    mated: bool

    def touched(self, units: Units, grouping: Grouping) -> TouchedCounts:
        """The counts of each of `cells(grouping)`, and of each identity's part in them."""
        error_F, error_FI = self._touched(self.error_UU, units, grouping)
        trial_F, trial_FI = self._touched(self.trial_UU, units, grouping)
        return TouchedCounts(error_F, trial_F, error_FI, trial_FI)

    def by_identity(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of non-mated pairs by both identities, symmetric float64 [I,I], without fixed units."""
        error_IU, trial_IU = (units.per_identity(count_UU).T for count_UU in (self.error_UU, self.trial_UU))
        return units.per_identity(error_IU), units.per_identity(trial_IU)

    def _touched(self, count_UU: np.ndarray, units: Units, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
        member_UG = grouping.members()
        count_UG = count_UU @ member_UG
        sum_GG = member_UG.T @ count_UG
        pairs = cells(grouping)
        touched_FU = np.zeros((len(pairs), len(units)))
        for f, (a, b) in enumerate(pairs):
            touched_FU[f] += member_UG[:, a] * count_UG[:, b]
            if a != b:
                touched_FU[f] += member_UG[:, b] * count_UG[:, a]
        # Both ends of a mated pair belong to one identity, which has one part in it, not two.
        touched_FI = units.per_identity(touched_FU) / (2 if self.mated else 1)
        return np.array([sum_GG[a, b] / (2 if a == b else 1) for a, b in pairs]), touched_FI


def cells(grouping: Grouping) -> tuple[tuple[int, int], ...]:
    """The pairs of groups whose images are compared, a <= b, in the order in which figures of pairs come."""
    return tuple(combinations_with_replacement(range(len(grouping)), 2))


def own_cells(grouping: Grouping) -> list[int]:
    """The positions in `cells` of each group compared with itself, in the order of the groups."""
    return [f for f, (a, b) in enumerate(cells(grouping)) if a == b]


class PairCounts:
    """Adds up blocks of pairs, of which there may be 1e8, at the thresholds that were fixed beforehand.

    Args:
        units: the images that are compared, see `Units`.
        thresholds: a pair scoring at least that much matches.

    Raises:
        UserError: more units than tables of units against units can be kept of.
    """

    def __init__(self, units: Units, thresholds: Sequence[float]) -> None:
        self.units = units
        self.threshold_T = np.asarray(thresholds, dtype=np.float64).reshape(-1)
        size = len(units)
        if (len(self.threshold_T) + 1) * size * size > _MOST_CELLS:
            most = int(np.sqrt(_MOST_CELLS / (len(self.threshold_T) + 1)))
            raise UserError(
                f"{size} sets of images of one identity and one group are too many to compare with each other: at most "
                f"{most} at {len(self.threshold_T)} thresholds; group by fewer columns, or audit a sample of identities"
            )
        self._non_mated_trial_K = np.zeros(size * size, dtype=np.int64)
        self._non_mated_error_TK = np.zeros((len(self.threshold_T), size * size), dtype=np.int64)
        self._mated_trial = self._sparse(np.zeros(0, dtype=np.int64))
        self._mated_error_T = [self._mated_trial for _ in self.threshold_T]

    def add(self, score_M: np.ndarray, mated_M: np.ndarray, left_M: np.ndarray, right_M: np.ndarray) -> None:
        """Counts a block of pairs: each once, in any order, as positions among the units' N images.

        Raises:
            UserError: a score that is no number.
            ValueError: lengths that differ, or a pair that is called mated and is of two identities, or the reverse.
        """
        score_M, mated_M = np.asarray(score_M), np.asarray(mated_M, dtype=bool)
        left_M, right_M = self.units.unit_N[left_M], self.units.unit_N[right_M]
        if not len(score_M) == len(mated_M) == len(left_M) == len(right_M):
            raise ValueError(f"{len(score_M)} scores, {len(mated_M)} labels, {len(left_M)} and {len(right_M)} images")
        if np.isnan(score_M).any():
            raise UserError(f"the score of pair {int(np.argmax(np.isnan(score_M)))} of a block is no number")
        identity_U, fixed_U = self.units.identity_U, self.units.fixed_U
        wrong_M = (identity_U[left_M] == identity_U[right_M]) & ~fixed_U[left_M] != mated_M
        if wrong_M.any():
            first = int(np.argmax(wrong_M))
            ends = " and ".join(self.units.identities[identity_U[end_M[first]]] for end_M in (left_M, right_M))
            raise ValueError(f"pair {first} of a block, of {ends}, is {'' if mated_M[first] else 'not '}called mated")
        key_M = np.minimum(left_M, right_M) * len(self.units) + np.maximum(left_M, right_M)
        other_M = ~mated_M
        np.add.at(self._non_mated_trial_K, key_M[other_M], 1)
        self._mated_trial = self._mated_trial + self._sparse(key_M[mated_M])
        for t, threshold in enumerate(self.threshold_T):
            match_M = score_M >= threshold
            np.add.at(self._non_mated_error_TK[t], key_M[other_M & match_M], 1)
            self._mated_error_T[t] = self._mated_error_T[t] + self._sparse(key_M[mated_M & ~match_M])

    def non_mated(self, threshold: int) -> UnitPairs:
        """False matches among non-mated pairs at the threshold of that position."""
        shape = len(self.units), len(self.units)
        counts = self._non_mated_error_TK[threshold].reshape(shape), self._non_mated_trial_K.reshape(shape)
        return UnitPairs(*(count_UU + count_UU.T for count_UU in counts), mated=False)

    def mated(self, threshold: int) -> UnitPairs:
        """False non-matches among mated pairs at the threshold of that position."""
        counts = self._mated_error_T[threshold], self._mated_trial
        return UnitPairs(*(count_UU + count_UU.T for count_UU in counts), mated=True)

    def _sparse(self, key_M: np.ndarray):
        from scipy.sparse import csr_array

        size = len(self.units)
        ends = np.divmod(key_M, size)
        return csr_array((np.ones(len(key_M), dtype=np.int64), ends), shape=(size, size))
