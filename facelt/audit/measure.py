"""Measurements of an audit: searches, decision thresholds, and the error rates of one grouping.

P enrolled images, N non-mated searches, U units, G groups, I identities, D feature.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from facelt.audit.audited_set import AuditedSet, EmbeddingComparisons, similarity
from facelt.audit.features import FeatureSet
from facelt.audit.inputs import AuditInputs
from facelt.config.audit import AuditConfig, StatisticsConfig
from facelt.errors import UserError
from facelt.identification.all_pairs import PairHistograms, normalized_rows
from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, max_errors, top_threshold_reason
from facelt.identification.open_set import OpenSetSearches, open_set_searches, search_outcomes
from facelt.identification.rank import hit_ranks, mate_pairs, probe_hits
from facelt.search.exact import BadRow, similarities
from facelt.search.top_k import top_k
from facelt.stats.comparisons import Contrast, pairwise_contrasts
from facelt.stats.groups import (
    Grouping,
    GroupSize,
    GroupTable,
    Units,
    group_sizes,
    pair_table,
    search_table,
)
from recordio_tools.progress import ProgressFn, no_progress

# float32 scores of one block.
_MAX_SCORES = 1 << 22


@dataclass(frozen=True, eq=False)
class SearchOutcomes:
    """Trials of each image as the probe, and those with the counted event, int64 [P] each."""

    event_P: np.ndarray
    trial_P: np.ndarray


@dataclass(frozen=True, eq=False)
class SearchResults:
    """Rank-1 hits, and the open-set searches with either half of the people enrolled."""

    rank1: SearchOutcomes
    open_set: OpenSetSearches

    @property
    def nonmated_max_scores(self) -> np.ndarray:
        """Best score of each non-mated search of both halves, float64 [N]."""
        return np.concatenate([half.best_score_N for half in self.open_set.halves])

    @property
    def highest_score(self) -> float:
        """Highest score of a mate or of a candidate in both halves."""
        return max(half.highest_score() for half in self.open_set.halves)

    def outcomes(self, threshold: float) -> dict[str, SearchOutcomes]:
        """Returns rank-1 hits, misses of mated searches (FNIR) and false positives of non-mated searches (FPIR)."""
        miss_P, mated_P, positive_P, nonmated_P = np.zeros((4, len(self.rank1.trial_P)), dtype=np.int64)
        for half in self.open_set.halves:
            miss_M, positive_N = search_outcomes(half, threshold, self.open_set.rank)
            mated_P[half.mated_M] += 1
            nonmated_P[half.nonmated_N] += 1
            miss_P[half.mated_M] += miss_M
            positive_P[half.nonmated_N] += positive_N
        return {
            "rank1": self.rank1,
            "fnir": SearchOutcomes(miss_P, mated_P),
            "fpir": SearchOutcomes(positive_P, nonmated_P),
        }


def search_all(
    embeddings: EmbeddingComparisons, gallery: FeatureSet | None, seed: int, progress: ProgressFn = no_progress
) -> SearchResults:
    """Searches with every enrolled image; `seed` draws who is enrolled in the open-set searches.

    The distractors of rank 1 are the gallery or, without one, the images of all other identities. Raises UserError
    naming a gallery image that cannot be scored.
    """
    row_PD, cosine = embeddings.row_ED, embeddings.cosine
    with _naming_gallery_images(gallery):
        if gallery is None:
            rows_GD = np.empty((0, row_PD.shape[1]), dtype=np.float32)
            best_P = _best_other_identity(embeddings, progress)
        else:
            rows_GD = gallery.rows
            best_P = top_k(row_PD, rows_GD, 1, cosine=cosine, progress=progress)[0][0, :, 0]
        open_set = open_set_searches(
            row_PD, embeddings.identity_E, rows_GD, seed=seed, cosine=cosine, progress=progress
        )
    return SearchResults(_rank1_hits(embeddings, best_P), open_set)


def _rank1_hits(embeddings: EmbeddingComparisons, best_P: np.ndarray) -> SearchOutcomes:
    """Counts every ordered pair (mate, probe) as a hit unless the probe's best distractor score is higher."""
    pairs = mate_pairs(embeddings.identity_E)
    score_M = pairs.scores(embeddings.row_ED, cosine=embeddings.cosine)
    rank_M = hit_ranks(score_M, pairs.probe_M, best_P[:, None])
    trial_P = np.bincount(pairs.probe_M, minlength=len(best_P))
    return SearchOutcomes(probe_hits(rank_M, pairs.probe_M, len(best_P), 1)[:, 0], trial_P)


def _best_other_identity(embeddings: EmbeddingComparisons, progress: ProgressFn) -> np.ndarray:
    """Returns the score of the most similar image of another identity, float64 [P]."""
    row_PD = normalized_rows(embeddings.row_ED, "query", cosine=embeddings.cosine)
    best_P = np.empty(len(row_PD), dtype=np.int64)
    step = max(1, _MAX_SCORES // len(row_PD))
    for start in range(0, len(row_PD), step):
        part = slice(start, start + step)
        score_BP = row_PD[part] @ row_PD.T
        score_BP[embeddings.identity_E[part, None] == embeddings.identity_E] = -np.inf
        best_P[part] = score_BP.argmax(axis=1)
        progress("searching", min(start + step, len(row_PD)), len(row_PD))
    return similarities(embeddings.row_ED, np.arange(len(best_P)), embeddings.row_ED, best_P, cosine=embeddings.cosine)


@contextmanager
def _naming_gallery_images(gallery: FeatureSet | None) -> Iterator[None]:
    """Replaces the row number of a gallery image that cannot be scored by its file and key."""
    try:
        yield
    except BadRow as error:
        raise UserError(f"{gallery.path}: {gallery.keys[error.row]!r} {error.reason}") from error


@dataclass(frozen=True)
class DecisionThreshold:
    """Threshold of comparisons; `wanted` rate and achieved `rate` among `trials`, all None if the score was given.

    `supported` is True if the trials suffice for 30 errors at the wanted rate (Doddington's rule).
    """

    score: float
    kind: str
    where: str
    wanted: float | None = None
    rate: float | None = None
    trials: int | None = None
    supported: bool | None = None


def choose_thresholds(
    config: AuditConfig, inputs: AuditInputs, searches: SearchResults | None
) -> dict[str, DecisionThreshold]:
    """Returns the thresholds of `pairs` and, if there are searches, of `searches`; a single one serves both.

    They are set on the audited set, or on `threshold.store` with its own searches among the same distractors. Raises
    UserError if no threshold achieves the wanted rate.
    """
    target, calibration, where = config.threshold.wanted, inputs.audited, "the audited set"
    uses = ("pairs",) if searches is None else ("pairs", "searches")
    if config.threshold.score is not None:
        score = similarity(config.threshold.score, config.higher_is)
        return dict.fromkeys(uses, DecisionThreshold(score, "given", "named by the auditor"))
    if inputs.calibration is not None:
        calibration, where = inputs.calibration, str(config.threshold.store)
        if searches is not None and target.fpir is not None:
            searches = search_all(calibration.embeddings, inputs.gallery, config.statistics.seed)
    thresholds = {}
    if target.fmr is not None:
        thresholds["pairs"] = _threshold_at_fmr(calibration, target.fmr, where)
    if target.fpir is not None and searches is not None:
        thresholds["searches"] = _threshold_at_fpir(searches.nonmated_max_scores, target.fpir, where)
    if not thresholds:
        raise UserError("threshold.fpir: a scores file has no searches; set threshold.fmr or threshold.score")
    single = next(iter(thresholds.values()))
    return {use: thresholds.get(use, single) for use in uses}


def _threshold_at_fmr(calibration: AuditedSet, fmr: float, where: str) -> DecisionThreshold:
    """Returns the lowest threshold that keeps the FMR of all pairs at or below `fmr`."""
    units = calibration.enrolled_units({})
    one_group = Grouping((), ((),), np.zeros(len(units), dtype=np.int64))
    histograms = calibration.comparisons.histograms(units, one_group).overall
    point = histograms.point(fmr)
    if point.threshold is None:
        raise UserError(f"threshold.fmr: no threshold for an FMR of {fmr:g} on {where}: {point.reason}")
    return DecisionThreshold(point.threshold, "fmr", where, fmr, point.fmr, histograms.nonmated, point.supported)


def _threshold_at_fpir(score_N: np.ndarray, fpir: float, where: str) -> DecisionThreshold:
    """Returns the lowest threshold that at most a fraction `fpir` of the non-mated searches' best scores reach."""
    allowed = max_errors(fpir, len(score_N))
    if allowed < 1:
        raise UserError(
            f"threshold.fpir: no threshold for an FPIR of {fpir:g} on {where}: that needs {int(np.ceil(1 / fpir)):,} "
            f"non-mated searches, there are {len(score_N):,}"
        )
    # Just above the best score that is one too many.
    score = float(np.nextafter(np.sort(score_N)[::-1][allowed], np.inf))
    rate = float(np.mean(score_N >= score))
    return DecisionThreshold(score, "fpir", where, fpir, rate, len(score_N), allowed >= MIN_SUPPORTING_ERRORS)


def threshold_notes(
    thresholds: Mapping[str, DecisionThreshold], highest_scores: Mapping[str, float], *, is_cosine: bool
) -> list[str]:
    """Returns a note on each threshold that no score of the audited set lies above; highest scores are by use."""
    notes = []
    for use, threshold in thresholds.items():
        reason = top_threshold_reason(threshold.score, highest_scores[use], is_cosine=is_cosine)
        if reason is not None:
            set_on = "" if threshold.wanted is None else f", set on {threshold.where},"
            notes.append(f"The threshold for {use}, {threshold.score:.4f}{set_on} {reason}.")
    return notes


@dataclass(frozen=True, eq=False)
class GroupingResult:
    """Measurements of one grouping: tables by metric, and in `across` the FMR of every two groups."""

    grouping: Grouping
    sizes: tuple[GroupSize, ...]
    tables: dict[str, GroupTable]
    across: GroupTable
    histograms: PairHistograms
    contrasts: tuple[Contrast, ...]


def measure_grouping(
    audited: AuditedSet,
    columns: Mapping[str, list[str]],
    threshold: float,
    outcomes: Mapping[str, SearchOutcomes],
    statistics: StatisticsConfig,
    least_identities: int,
) -> GroupingResult:
    """Measures all metrics by the groups of `columns` (N values each) at one threshold; `outcomes` are by metric."""
    by = tuple(columns)
    all_units = Units.from_columns(audited.identities, columns)
    sizes = group_sizes(all_units, all_units.grouping(by), ~audited.enrolled_N, least_identities=least_identities)
    units = audited.enrolled_units(columns)
    grouping = units.grouping(by)
    mated, non_mated = audited.comparisons.errors(units, threshold)
    settings = {"level": statistics.level, "least_identities": least_identities}
    tables = {}
    for metric, outcome in outcomes.items():
        event_U, trial_U = (
            np.bincount(units.unit_N, weights=count_P, minlength=len(units))
            for count_P in (outcome.event_P, outcome.trial_P)
        )
        tables[metric] = search_table(metric, event_U, trial_U, units, grouping, **settings)
    tables["fmr"] = pair_table("fmr", non_mated, units, grouping, **settings)
    tables["fnmr"] = pair_table("fnmr", mated, units, grouping, **settings)
    return GroupingResult(
        grouping,
        sizes,
        tables,
        pair_table("fmr", non_mated, units, grouping, across=True, **settings),
        audited.comparisons.histograms(units, grouping),
        tuple(contrast for table in tables.values() for contrast in pairwise_contrasts(table)),
    )
