"""Open-set identification: half of the identities are enrolled among distractors, the others are strangers to it.

Terms and protocol after ISO/IEC 19795-1 and NIST's FRVT 1:N (NISTIR 8271). A search whose person is enrolled is mated,
one whose person is not is non-mated. Then the halves swap places.

P probes, G distractors, E enrolled images, M mated and N non-mated searches, R ranks, D feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from facelt.identification.rank import hit_ranks
from facelt.search import Rows, similarities, top_k

ENROLMENT = "one image of each enrolled identity, drawn with the seed; its other images are the mated searches"


@dataclass(frozen=True, eq=False)
class Searches:
    """The searches of one half; positions are among the P probes.

    `enrolled_E` are the images that were enrolled beside the distractors, `gallery` how many images that makes in all.
    `mate_rank_M` is the rank of the mate among them, R + 1 where it is not among the best R; a tie counts for the mate.
    `mate_score_M` and `best_score_N` are the similarities of a mated search's mate and of a non-mated search's best
    candidate, float64.
    """

    enrolled_E: np.ndarray
    gallery: int
    mated_M: np.ndarray
    mate_rank_M: np.ndarray
    mate_score_M: np.ndarray
    nonmated_N: np.ndarray
    best_score_N: np.ndarray


@dataclass(frozen=True, eq=False)
class OpenSetSearches:
    """Both halves' searches, down to rank `rank`; `enrolment` says in words who was enrolled."""

    halves: tuple[Searches, Searches]
    rank: int
    seed: int
    enrolment: str = ENROLMENT


def open_set_searches(
    probe_PD: np.ndarray,
    identity_P: np.ndarray,
    distractor_GD: Rows,
    *,
    rank: int = 1,
    seed: int = 0,
    cosine: bool = False,
    search: Callable[..., tuple[np.ndarray, np.ndarray]] = top_k,
    advance: Callable[[int], None] | None = None,
) -> OpenSetSearches:
    """Search with every image of every identity in both halves; the distractors are read once, for both.

    The identities, in their sorted order, are shuffled with the seed; the first half (the larger one by one identity
    where their number is odd) is enrolled first. Which image of an identity is enrolled is drawn likewise. An identity
    of one image is enrolled and is never a mated search; in the other half it is a non-mated one. Where there are fewer
    than two identities a half is empty, and so are its searches. `advance(rows)` is called as distractors are searched;
    `search` searches them and is called as `facelt.search.top_k` is.

    Raises BadRow and UserError as `facelt.search.top_k` does; ValueError on a rank outside 1..254 or on as many
    identities as probes.
    """
    probe_PD, identity_P = np.asarray(probe_PD, dtype=np.float32), np.asarray(identity_P)
    if len(identity_P) != len(probe_PD):
        raise ValueError(f"{len(identity_P)} identities for {len(probe_PD)} probes")
    if not 0 < rank < 255:
        raise ValueError(f"rank {rank}: must lie between 1 and 254")
    distractors = distractor_GD.shape[0]
    distractor_PR = search(probe_PD, distractor_GD, rank, [distractors], cosine=cosine, advance=advance)[0][0]
    halves = []
    for enrolled_E in _enrolments(identity_P, seed):
        mate_P = _mates(identity_P, enrolled_E)
        searched_P = mate_P != np.arange(len(mate_P))
        mated_M = np.flatnonzero(searched_P & (mate_P >= 0))
        nonmated_N = np.flatnonzero(mate_P < 0)
        if len(enrolled_E):
            enrolled_PR = top_k(probe_PD, probe_PD[enrolled_E], rank, cosine=cosine)[0][0]
            best_PR = -np.sort(-np.hstack([distractor_PR, enrolled_PR]), axis=1)[:, :rank]
        else:
            best_PR = distractor_PR
        score_M = similarities(probe_PD, mated_M, probe_PD, mate_P[mated_M], cosine=cosine)
        # The mate is one of the candidates itself: only those strictly more similar stand before it.
        rank_M = hit_ranks(score_M, np.arange(len(mated_M)), best_PR[mated_M])
        gallery = len(enrolled_E) + distractors
        halves.append(Searches(enrolled_E, gallery, mated_M, rank_M, score_M, nonmated_N, best_PR[nonmated_N, 0]))
    return OpenSetSearches(tuple(halves), rank, seed)


def _enrolments(identity_P: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the images enrolled when the first and when the second half is, in ascending order."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    random = np.random.default_rng(seed)
    half_I = np.empty(len(names), dtype=np.int64)
    half_I[random.permutation(len(names))] = np.arange(len(names)) >= (len(names) + 1) // 2
    shuffled_P = random.permutation(len(code_P))
    # Of each identity the image that comes first in the shuffled order.
    _, first_I = np.unique(code_P[shuffled_P], return_index=True)
    drawn_I = shuffled_P[first_I]
    return np.sort(drawn_I[half_I == 0]), np.sort(drawn_I[half_I == 1])


def _mates(identity_P: np.ndarray, enrolled_E: np.ndarray) -> np.ndarray:
    """The enrolled image of each probe's identity, its own position for the image itself, -1 without any: int64 [P]."""
    names, code_P = np.unique(identity_P, return_inverse=True)
    enrolled_I = np.full(len(names), -1, dtype=np.int64)
    enrolled_I[code_P[enrolled_E]] = enrolled_E
    return enrolled_I[code_P]
