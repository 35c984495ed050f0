"""Template protocols (IJB-B, IJB-C; Maze et al., ICB 2018): templates of several media, scores of pairs, rank-k rates.

N images, M rows of (image, template, medium), T templates, D feature, S searches, K ranks, I identities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.identification.open_set import HalfSearches, search_outcomes
from facelt.search.exact import BadRow
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from recordio_tools.progress import ProgressFn, no_progress

SEARCH_LEVEL = 0.95
# float64 values of one block.
_BLOCK_VALUES = 1 << 22


def template_features(
    feature_ND: np.ndarray,
    image_M: np.ndarray,
    template_M: np.ndarray,
    medium_M: np.ndarray,
    weight_N: np.ndarray | None = None,
    *,
    normalize: bool = False,
    progress: ProgressFn = no_progress,
) -> np.ndarray:
    """Returns the feature of each template, float32 [T,D] of unit length, for templates 0..T-1 in `template_M`.

    The features of the images of a medium (a video's frames) are averaged, then those of the media of a template are
    summed, as InsightFace's evaluation does. Image features are used as they are, multiplied by `weight_N` if given,
    with `normalize` after scaling them to unit length. Computed in float64, in blocks of templates.

    Raises BadRow: side `images` at a feature that is not finite or, with `normalize`, is zero; side `templates` at a
    template whose features sum to zero.
    """
    order_M = np.lexsort((medium_M, template_M))
    image_M, template_M, medium_M = image_M[order_M], template_M[order_M], medium_M[order_M]
    template_T = np.searchsorted(template_M, np.arange(template_M[-1] + 1))
    feature_TD = np.empty((len(template_T), feature_ND.shape[1]), dtype=np.float32)
    done = 0
    for rows in _template_blocks(template_T, len(template_M), feature_ND.shape[1]):
        value_MD = _image_features(feature_ND, image_M[rows], weight_N, normalize)
        is_first_M = np.ones(len(value_MD), dtype=bool)
        is_first_M[1:] = (np.diff(template_M[rows]) != 0) | (np.diff(medium_M[rows]) != 0)
        (medium_start,) = np.nonzero(is_first_M)
        images = np.diff(medium_start, append=len(value_MD))
        mean_VD = np.add.reduceat(value_MD, medium_start, axis=0) / images[:, None]
        template_V = template_M[rows][medium_start]
        sum_BD = np.add.reduceat(mean_VD, np.flatnonzero(np.diff(template_V, prepend=-1)), axis=0)
        length_B = np.linalg.norm(sum_BD, axis=1)
        if not length_B.all():
            raise BadRow("templates", done + int(np.argmin(length_B)), "has features that sum to zero")
        feature_TD[done : done + len(sum_BD)] = sum_BD / length_B[:, None]
        done += len(sum_BD)
        progress("averaging templates", done, len(feature_TD))
    return feature_TD


def _template_blocks(start_T: np.ndarray, rows: int, dimension: int) -> Iterator[slice]:
    """Yields slices of whole templates, of a limited number of rows unless a single template has more."""
    limit, end_T = max(1, _BLOCK_VALUES // dimension), np.append(start_T[1:], rows)
    start = 0
    while start < rows:
        last = max(int(np.searchsorted(end_T, start + limit, side="right")) - 1, int(np.searchsorted(end_T, start + 1)))
        yield slice(start, int(end_T[last]))
        start = int(end_T[last])


def _image_features(
    feature_ND: np.ndarray, image_M: np.ndarray, weight_N: np.ndarray | None, normalize: bool
) -> np.ndarray:
    value_MD = np.asarray(feature_ND[image_M], dtype=np.float64)
    if not (finite_M := np.isfinite(value_MD).all(axis=1)).all():
        raise BadRow("images", int(image_M[np.argmin(finite_M)]), "holds a value that is not finite")
    if normalize:
        length_M = np.linalg.norm(value_MD, axis=1)
        if not length_M.all():
            raise BadRow("images", int(image_M[np.argmin(length_M)]), "has length zero")
        value_MD /= length_M[:, None]
    if weight_N is not None:
        value_MD *= weight_N[image_M, None]
    return value_MD


@dataclass(frozen=True, eq=False)
class SearchRates:
    """Rates of searches with confidence limits clustered by identity, [K]; `identities` with searches.

    Limits are NaN with fewer than two identities.
    """

    rate_K: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray
    identities: int

    def limits(self, k: int) -> tuple[float, float] | None:
        """Returns the limits of rate `k`, None if there are none."""
        return None if np.isnan(self.low_K[k]) else (float(self.low_K[k]), float(self.high_K[k]))


def rank_rates(halves: Sequence[HalfSearches], identity_P: np.ndarray, ranks: Sequence[int]) -> SearchRates:
    """Returns the share of the mated searches of all galleries whose mate is among the best k, for each k of `ranks`.

    Raises ValueError without mated searches.
    """
    rank_S = np.concatenate([half.mate_rank_M for half in halves])
    identity_S = identity_P[np.concatenate([half.mated_M for half in halves])]
    if not len(rank_S):
        raise ValueError("there are no mated searches")
    return _search_rates(rank_S <= np.array(ranks)[:, None], identity_S, np.ones(len(rank_S)))


def miss_rate(
    halves: Sequence[HalfSearches], thresholds: Sequence[float], rank: int, identity_P: np.ndarray
) -> SearchRates:
    """Returns FNIR as the mean over the galleries, each at its threshold, with limits; [1].

    A search has the weight that gives every gallery the same one. The thresholds are taken as fixed: the limits do not
    have the uncertainty of the non-mated searches.
    """
    is_missed = [search_outcomes(half, threshold, rank)[0] for half, threshold in zip(halves, thresholds, strict=True)]
    searches = sum(map(len, is_missed))
    weight_S = np.concatenate([np.full(len(part), searches / (len(halves) * len(part))) for part in is_missed])
    identity_S = identity_P[np.concatenate([half.mated_M for half in halves])]
    return _search_rates(np.concatenate(is_missed)[None], identity_S, weight_S)


def _search_rates(event_KS: np.ndarray, identity_S: np.ndarray, weight_S: np.ndarray) -> SearchRates:
    names_I, code_S = np.unique(identity_S, return_inverse=True)
    event_KI = np.stack([np.bincount(code_S, weight_S * event_S, minlength=len(names_I)) for event_S in event_KS])
    trial_I = np.bincount(code_S, weight_S)
    # Sums in another order differ in the last bit.
    event_KI = np.minimum(event_KI, trial_I)
    counts = ClusteredCounts.by_identity(event_KI, np.broadcast_to(trial_I, event_KI.shape))
    intervals = rate_intervals(counts, level=SEARCH_LEVEL)
    return SearchRates(intervals.rate_F, intervals.low_F, intervals.high_F, len(names_I))
