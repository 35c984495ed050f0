"""The best rows found so far for every query row. P probes, U some of them, K neighbours, M pairs, N entries."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Best:
    """Scores float64 [P,K] descending, ties by position, and positions int64 [P,K]; -inf and -1 at the end."""

    score_PK: np.ndarray
    id_PK: np.ndarray

    @classmethod
    def none(cls, probes: int, k: int) -> "Best":
        """Nothing found yet."""
        return cls(np.full((probes, k), -np.inf), np.full((probes, k), -1, dtype=np.int64))

    def merged(self, probe_M: np.ndarray, score_M: np.ndarray, id_M: np.ndarray) -> "Best":
        """The K best of these and the given pairs. A pair that is here already, or comes twice, counts once."""
        probes, k = self.score_PK.shape
        is_touched_P = np.zeros(probes, dtype=bool)
        is_touched_P[probe_M] = True
        (touched_U,) = np.nonzero(is_touched_P)
        probe_N = np.concatenate([np.repeat(touched_U, k), probe_M])
        score_N = np.concatenate([self.score_PK[touched_U].ravel(), score_M])
        id_N = np.concatenate([self.id_PK[touched_U].ravel(), id_M])
        order_N = np.lexsort((id_N, -score_N, probe_N))
        probe_N, score_N, id_N = probe_N[order_N], score_N[order_N], id_N[order_N]
        first_N = np.ones(len(id_N), dtype=bool)
        # Equal pairs have equal scores and so lie side by side; what stands for nothing found may repeat.
        first_N[1:] = (probe_N[1:] != probe_N[:-1]) | (id_N[1:] != id_N[:-1]) | (id_N[1:] < 0)
        probe_N, score_N, id_N = probe_N[first_N], score_N[first_N], id_N[first_N]
        entries_U = np.bincount(probe_N, minlength=probes)[touched_U]
        kept_UK = (np.cumsum(entries_U) - entries_U)[:, None] + np.arange(k)
        score_PK, id_PK = self.score_PK.copy(), self.id_PK.copy()
        score_PK[touched_U], id_PK[touched_U] = score_N[kept_UK], id_N[kept_UK]
        return Best(score_PK, id_PK)
