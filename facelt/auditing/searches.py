"""What becomes of each audited image when it is searched with: is its mate first, is it named wrongly or not at all?

P audited images, G distractors, N non-mated searches, D feature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from facelt.auditing.features import Features
from facelt.auditing.subject import Embedded
from facelt.errors import UserError
from facelt.identification import OpenSetSearches, hit_ranks, mate_pairs, open_set_searches, probe_hits
from facelt.identification.open_set_rates import outcomes
from facelt.identification.scored_rows import scored_rows
from facelt.search import BadRow, similarities, top_k

# Scores held at once.
SCORES = 1 << 22


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Of each image as the probe: its trials and how many of them had the event that is counted, int64 [P] each."""

    event_P: np.ndarray
    trial_P: np.ndarray


def rank_one(embedded: Embedded, gallery: Features | None) -> Outcomes:
    """Each ordered pair (mate, probe): a hit unless a distractor is more similar to the probe than the mate.

    Distractors are the gallery's images or, without one, the audited images of all other identities.
    """
    best_P = _best_others(embedded) if gallery is None else _best_distractors(embedded, gallery)
    pairs = mate_pairs(embedded.identity_E)
    score_M = pairs.scores(embedded.row_ED, cosine=embedded.cosine)
    rank_M = hit_ranks(score_M, pairs.probe_M, best_P[:, None])
    trial_P = np.bincount(pairs.probe_M, minlength=len(best_P))
    return Outcomes(probe_hits(rank_M, pairs.probe_M, len(best_P), 1)[:, 0], trial_P)


def open_set(embedded: Embedded, gallery: Features | None, seed: int) -> OpenSetSearches:
    """Searches with half of the audited people enrolled beside the gallery's images, then with the other half."""
    rows_GD = np.empty((0, embedded.row_ED.shape[1]), dtype=np.float32) if gallery is None else gallery.rows
    with _naming(gallery):
        return open_set_searches(embedded.row_ED, embedded.identity_E, rows_GD, seed=seed, cosine=embedded.cosine)


def best_of_strangers(searches: OpenSetSearches) -> np.ndarray:
    """The best score that each non-mated search of either half finds, float64 [N]."""
    return np.concatenate([half.best_score_N for half in searches.halves])


def open_set_outcomes(searches: OpenSetSearches, threshold: float, images: int) -> tuple[Outcomes, Outcomes]:
    """Misses of mated searches (FNIR) and false positives of non-mated ones (FPIR), of both halves, by the probe."""
    miss_P, mated_P, positive_P, nonmated_P = np.zeros((4, images), dtype=np.int64)
    for half in searches.halves:
        miss_M, positive_N = outcomes(half, threshold, searches.rank)
        mated_P[half.mated_M] += 1
        nonmated_P[half.nonmated_N] += 1
        miss_P[half.mated_M] += miss_M
        positive_P[half.nonmated_N] += positive_N
    return Outcomes(miss_P, mated_P), Outcomes(positive_P, nonmated_P)


def _best_distractors(embedded: Embedded, gallery: Features) -> np.ndarray:
    """The score of the most similar distractor of each image, float64 [P]."""
    with _naming(gallery):
        return top_k(embedded.row_ED, gallery.rows, 1, cosine=embedded.cosine)[0][0, :, 0]


def _best_others(embedded: Embedded) -> np.ndarray:
    """The score of the most similar image of another audited identity, float64 [P]."""
    rows_PD = scored_rows(embedded.row_ED, "query", cosine=embedded.cosine)
    best_P = np.empty(len(rows_PD), dtype=np.int64)
    step = max(1, SCORES // len(rows_PD))
    for start in range(0, len(rows_PD), step):
        part = slice(start, start + step)
        score_BP = rows_PD[part] @ rows_PD.T
        score_BP[embedded.identity_E[part, None] == embedded.identity_E] = -np.inf
        best_P[part] = score_BP.argmax(axis=1)
    return similarities(embedded.row_ED, np.arange(len(best_P)), embedded.row_ED, best_P, cosine=embedded.cosine)


@contextmanager
def _naming(gallery: Features | None) -> Iterator[None]:
    """Turns the position of a gallery row that cannot be scored into its file and image."""
    try:
        yield
    except BadRow as error:
        raise UserError(f"{gallery.path}: {gallery.keys[error.row]!r} {error.reason}") from error
