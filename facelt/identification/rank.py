"""Rank-k identification of every ordered (gallery mate, probe) pair among distractors (MegaFace, CVPR 2016).

One mate at a time is added to the gallery of distractors. A pair is a hit at rank r if the mate scores at least as high
as the r-th best distractor: a tie is a hit, and with fewer than r distractors every pair is a hit. Also the pseudo-shot
bands of probes, by their number of similar training images.

P probes, M pairs, K ranks, D feature.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from facelt.search.exact import similarities


@dataclass(frozen=True, eq=False)
class MatePairs:
    """All ordered pairs of two images of one identity: positions `mate_M` and `probe_M` among the P probes."""

    mate_M: np.ndarray
    probe_M: np.ndarray

    def __len__(self) -> int:
        return len(self.probe_M)

    def scores(self, probe_PD: np.ndarray, *, cosine: bool) -> np.ndarray:
        """Returns the score of each pair, float64 [M]; ties compare exactly with the scores of `top_k`."""
        return similarities(probe_PD, self.probe_M, probe_PD, self.mate_M, cosine=cosine)


def mate_pairs(identity_P: np.ndarray) -> MatePairs:
    """Returns all ordered pairs within each identity, by identity, probe and mate; n * (n - 1) for n images."""
    _, code_P, count_I = np.unique(identity_P, return_inverse=True, return_counts=True)
    order_P = np.argsort(code_P, kind="stable")
    size_P = count_I[code_P[order_P]]
    first_P = (np.cumsum(count_I) - count_I)[code_P[order_P]]
    # Each probe is paired with all images of its identity; the pair with itself is dropped.
    probe_M = np.repeat(np.arange(len(order_P)), size_P)
    within_M = np.arange(len(probe_M)) - np.repeat(np.cumsum(size_P) - size_P, size_P)
    mate_M = first_P[probe_M] + within_M
    is_other_M = mate_M != probe_M
    return MatePairs(order_P[mate_M[is_other_M]], order_P[probe_M[is_other_M]])


def hit_ranks(score_M: np.ndarray, probe_M: np.ndarray, distractor_PK: np.ndarray) -> np.ndarray:
    """Returns the smallest rank at which each pair is a hit, 1..K, or K + 1 if there is none; uint8 [M].

    `score_M` are the scores of the pairs, `distractor_PK` the K best distractor scores of each probe, descending.
    Raises ValueError unless 1 <= K <= 254.
    """
    ranks = distractor_PK.shape[1]
    if not 0 < ranks < 255:
        raise ValueError(f"{ranks} ranks: must be 1 to 254")
    rank_M = np.empty(len(score_M), dtype=np.uint8)
    step = max(1, (1 << 22) // ranks)
    for start in range(0, len(score_M), step):
        part = slice(start, start + step)
        rank_M[part] = 1 + (distractor_PK[probe_M[part]] > score_M[part, None]).sum(axis=1)
    return rank_M


def probe_hits(rank_M: np.ndarray, probe_M: np.ndarray, probes: int, ranks: int) -> np.ndarray:
    """Returns the number of hits of each probe at rank 1..K, int64 [P,K]; group rates are sums over probes."""
    cell_M = probe_M.astype(np.int64) * (ranks + 1) + (rank_M - 1)
    count_PK = np.bincount(cell_M, minlength=probes * (ranks + 1)).reshape(probes, ranks + 1)
    return np.cumsum(count_PK[:, :ranks], axis=1)


# Pseudo-shot bands: the fewest and the most similar training embeddings (OLTR, CVPR 2019, Table 4); None: no limit.
PSEUDO_SHOT_BANDS = MappingProxyType({"many": (5, None), "few": (2, 4), "one": (1, 1), "zero": (0, 0)})


def pseudo_shot_bands(count_P: np.ndarray) -> dict[str, np.ndarray]:
    """The probes of each pseudo-shot band, bool [P].

    `count_P` are the probes' pseudo-shots: training embeddings of the same model with a cosine similarity above a
    threshold, 0.7 in the paper (`facelt.search.top_k.count_above`).
    """
    return {
        name: (count_P >= fewest) & (count_P <= (np.inf if most is None else most))
        for name, (fewest, most) in PSEUDO_SHOT_BANDS.items()
    }


def pseudo_shot_labels() -> dict[str, str]:
    """The numbers of each band as text: `>= 5`, `2 to 4`, `1`."""
    return {
        name: f">= {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
        for name, (fewest, most) in PSEUDO_SHOT_BANDS.items()
    }
