"""What becomes of each audited image when it is searched with: is its mate first, is it named wrongly or not at all?

P audited images, G distractors, N non-mated searches, D feature.

One grouping of the audited images: the tables of every rate, the trade-off of each group, what sets groups apart.

P enrolled images, U units, G groups, I identities, R replicates.

The thresholds that hold for every group alike, and the set each was set on.

S searches.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from facelt.audit.audited_set import AuditedSet, EmbeddingComparisons, FeatureSet
from facelt.audit.inputs import AuditInputs
from facelt.config.audit import AuditConfig, StatisticsConfig
from facelt.errors import UserError
from facelt.identification.all_pairs import PairHistograms, normalized_rows
from facelt.identification.error_rates import MIN_SUPPORTING_ERRORS, ScoreHistograms, max_errors
from facelt.identification.open_set import OpenSetSearches, open_set_searches, search_outcomes
from facelt.identification.rank import hit_ranks, mate_pairs, probe_hits
from facelt.search.exact import BadRow, similarities
from facelt.search.top_k import top_k
from facelt.stats.groups import (
    Grouping,
    GroupSize,
    GroupTable,
    UnitPairCounts,
    Units,
    group_sizes,
    pair_table,
    search_table,
    within_group_pairs,
)
from facelt.stats.permutation import (
    Contrast,
    DifferenceTest,
    identity_rows,
    nonmated_permutation_test,
    pairwise_contrasts,
    permutation_test,
)
from facelt.stats.resampling import identity_weights, replicate_pair_rates, replicate_rates
from recordio_tools.progress import ProgressFn, no_progress

# Scores held at once.
_MAX_SCORES = 1 << 22


@dataclass(frozen=True, eq=False)
class SearchOutcomes:
    """Of each image as the probe: its trials and how many of them had the event that is counted, int64 [P] each."""

    event_P: np.ndarray
    trial_P: np.ndarray


def rank1_outcomes(
    embedded: EmbeddingComparisons, gallery: FeatureSet | None, progress: ProgressFn = no_progress
) -> SearchOutcomes:
    """Each ordered pair (mate, probe): a hit unless a distractor is more similar to the probe than the mate.

    Distractors are the gallery's images or, without one, the audited images of all other identities.
    """
    best_P = _best_others(embedded, progress) if gallery is None else _best_distractors(embedded, gallery, progress)
    pairs = mate_pairs(embedded.identity_E)
    score_M = pairs.scores(embedded.row_ED, cosine=embedded.cosine)
    rank_M = hit_ranks(score_M, pairs.probe_M, best_P[:, None])
    trial_P = np.bincount(pairs.probe_M, minlength=len(best_P))
    return SearchOutcomes(probe_hits(rank_M, pairs.probe_M, len(best_P), 1)[:, 0], trial_P)


def half_gallery_searches(
    embedded: EmbeddingComparisons, gallery: FeatureSet | None, seed: int, progress: ProgressFn = no_progress
) -> OpenSetSearches:
    """Searches with half of the audited people enrolled beside the gallery's images, then with the other half."""
    rows_GD = np.empty((0, embedded.row_ED.shape[1]), dtype=np.float32) if gallery is None else gallery.rows
    with _naming(gallery):
        return open_set_searches(
            embedded.row_ED, embedded.identity_E, rows_GD, seed=seed, cosine=embedded.cosine, progress=progress
        )


def nonmated_max_scores(searches: OpenSetSearches) -> np.ndarray:
    """The best score that each non-mated search of either half finds, float64 [N]."""
    return np.concatenate([half.best_score_N for half in searches.halves])


def fnir_fpir_outcomes(
    searches: OpenSetSearches, threshold: float, images: int
) -> tuple[SearchOutcomes, SearchOutcomes]:
    """Misses of mated searches (FNIR) and false positives of non-mated ones (FPIR), of both halves, by the probe."""
    miss_P, mated_P, positive_P, nonmated_P = np.zeros((4, images), dtype=np.int64)
    for half in searches.halves:
        miss_M, positive_N = search_outcomes(half, threshold, searches.rank)
        mated_P[half.mated_M] += 1
        nonmated_P[half.nonmated_N] += 1
        miss_P[half.mated_M] += miss_M
        positive_P[half.nonmated_N] += positive_N
    return SearchOutcomes(miss_P, mated_P), SearchOutcomes(positive_P, nonmated_P)


def _best_distractors(embedded: EmbeddingComparisons, gallery: FeatureSet, progress: ProgressFn) -> np.ndarray:
    """The score of the most similar distractor of each image, float64 [P]."""
    with _naming(gallery):
        return top_k(embedded.row_ED, gallery.rows, 1, cosine=embedded.cosine, progress=progress)[0][0, :, 0]


def _best_others(embedded: EmbeddingComparisons, progress: ProgressFn) -> np.ndarray:
    """The score of the most similar image of another audited identity, float64 [P]."""
    rows_PD = normalized_rows(embedded.row_ED, "query", cosine=embedded.cosine)
    best_P = np.empty(len(rows_PD), dtype=np.int64)
    step = max(1, _MAX_SCORES // len(rows_PD))
    for start in range(0, len(rows_PD), step):
        part = slice(start, start + step)
        score_BP = rows_PD[part] @ rows_PD.T
        score_BP[embedded.identity_E[part, None] == embedded.identity_E] = -np.inf
        best_P[part] = score_BP.argmax(axis=1)
        progress("searching", min(start + step, len(rows_PD)), len(rows_PD))
    return similarities(embedded.row_ED, np.arange(len(best_P)), embedded.row_ED, best_P, cosine=embedded.cosine)


@contextmanager
def _naming(gallery: FeatureSet | None) -> Iterator[None]:
    """Turns the position of a gallery row that cannot be scored into its file and image."""
    try:
        yield
    except BadRow as error:
        raise UserError(f"{gallery.path}: {gallery.keys[error.row]!r} {error.reason}") from error


@dataclass(frozen=True, eq=False)
class GroupingResult:
    """What was counted by one grouping: `tables` by metric, `across` the FMR of every two groups.

    `replicates` holds for each metric the rates of its table's rows in each bootstrap replicate, float64 [R,G].
    """

    grouping: Grouping
    sizes: tuple[GroupSize, ...]
    tables: dict[str, GroupTable]
    replicates: dict[str, np.ndarray]
    across: GroupTable
    histograms: PairHistograms
    contrasts: tuple[Contrast, ...]


def measure_grouping(
    subject: AuditedSet,
    columns: Mapping[str, list[str]],
    by: tuple[str, ...],
    threshold: float,
    outcomes: Mapping[str, SearchOutcomes],
    statistics: StatisticsConfig,
    least_identities: int,
) -> GroupingResult:
    """Count everything by the columns `by`, at one threshold for all. `outcomes` are of searches, by metric."""
    own = {name: columns[name] for name in by}
    everyone = Units.of(subject.identities, own)
    sizes = group_sizes(everyone, everyone.grouping(by), ~subject.enrolled_N, least_identities=least_identities)
    units = Units.of(subject.enrolled(subject.identities), {name: subject.enrolled(own[name]) for name in by})
    grouping = units.grouping(by)
    histograms = subject.comparison.histograms(units, grouping)
    mated, non_mated = subject.comparison.errors(units, threshold)
    settings = {"level": statistics.level, "least_identities": least_identities}
    tables, tests = {}, {}
    draws = {"permutations": statistics.replicates, "seed": statistics.seed}
    for metric, outcome in outcomes.items():
        event_U, trial_U = (_by_unit(count_P, units) for count_P in (outcome.event_P, outcome.trial_P))
        tables[metric] = search_table(metric, event_U, trial_U, units, grouping, **settings)
        event_I, trial_I = units.per_identity(event_U)[0], units.per_identity(trial_U)[0]
        tests[metric] = _search_test(event_I, trial_I, draws)
    tables["fmr"] = pair_table("fmr", non_mated, units, grouping, **settings)
    tests["fmr"] = _pair_test(*non_mated.by_identity(units), draws)
    tables["fnmr"] = pair_table("fnmr", mated, units, grouping, **settings)
    counts = tables["fnmr"].counts
    tests["fnmr"] = _search_test(counts.error_FI.sum(axis=0), counts.trial_FI.sum(axis=0), draws)
    across = pair_table("fmr", non_mated, units, grouping, across=True, **settings)
    found: list[Contrast] = []
    for metric, table in tables.items():
        found += pairwise_contrasts(table, identity_rows(table), tests[metric])
    pairs = {"fmr": non_mated, "fnmr": mated}
    replicates = _replicates(tables, pairs, units, grouping, statistics)
    return GroupingResult(grouping, sizes, tables, replicates, across, histograms, tuple(found))


def _by_unit(count_P: np.ndarray, units: Units) -> np.ndarray:
    return np.bincount(units.unit_N, weights=count_P, minlength=len(units))


def _replicates(
    tables: Mapping[str, GroupTable],
    pairs: Mapping[str, UnitPairCounts],
    units: Units,
    grouping: Grouping,
    statistics: StatisticsConfig,
) -> dict[str, np.ndarray]:
    """All metrics' rates with the same identities drawn; within groups, where each identity has one."""
    group_I = units.identity_groups(grouping)
    stratum_I = np.zeros(len(units.identities), dtype=np.int64) if group_I is None else group_I
    weight_RI = identity_weights(stratum_I, replicates=statistics.replicates, seed=statistics.seed)
    found = {}
    for metric, table in tables.items():
        if metric in pairs:
            found[metric] = replicate_pair_rates(pairs[metric], units, grouping, weight_RI)[
                :, within_group_pairs(grouping)
            ]
        else:
            found[metric] = replicate_rates(table.counts.error_FI, table.counts.trial_FI, weight_RI)
    return found


def _search_test(error_I: np.ndarray, trial_I: np.ndarray, draws: dict) -> DifferenceTest:
    return partial(permutation_test, error_I, trial_I, **draws)


def _pair_test(error_II: np.ndarray, trial_II: np.ndarray, draws: dict) -> DifferenceTest:
    return partial(nonmated_permutation_test, error_II, trial_II, **draws)


@dataclass(frozen=True)
class DecisionThreshold:
    """A threshold, the rate it was `wanted` for and the rate it has there among `trials`; given ones have neither.

    `supported` tells whether the trials suffice for 30 errors at the wanted rate (Doddington's rule).
    """

    score: float
    kind: str
    where: str
    wanted: float | None = None
    rate: float | None = None
    trials: int | None = None
    supported: bool | None = None


def threshold_for_fmr(histograms: ScoreHistograms, fmr: float, where: str) -> DecisionThreshold:
    """The lowest threshold that keeps the FMR of all pairs at or below `fmr`. Raises UserError without an answer."""
    point = histograms.point(fmr)
    if point.threshold is None:
        raise UserError(f"threshold.fmr: no threshold for an FMR of {fmr:g} on {where}: {point.reason}")
    return DecisionThreshold(point.threshold, "fmr", where, fmr, point.fmr, histograms.nonmated, point.supported)


def threshold_for_fpir(best_S: np.ndarray, fpir: float, where: str) -> DecisionThreshold:
    """The lowest threshold that keeps the FPIR of non-mated searches at or below `fpir`.

    `best_S` is the best score that each search found. Raises UserError where too few searches allow no error.
    """
    allowed = max_errors(fpir, len(best_S))
    if allowed < 1:
        raise UserError(
            f"threshold.fpir: no threshold for an FPIR of {fpir:g} on {where}: that needs {int(np.ceil(1 / fpir)):,} "
            f"non-mated searches, there are {len(best_S):,}"
        )
    # One more than is allowed scores this much; anything above it is enough.
    score = float(np.nextafter(np.sort(best_S)[::-1][allowed], np.inf))
    rate = float(np.mean(best_S >= score))
    return DecisionThreshold(score, "fpir", where, fpir, rate, len(best_S), allowed >= MIN_SUPPORTING_ERRORS)


def choose_thresholds(
    config: AuditConfig, inputs: AuditInputs, best_S: np.ndarray | None
) -> dict[str, DecisionThreshold]:
    """The thresholds of `pairs` and, where there are searches (`best_S`), of `searches`; one serves both if alone.

    They are set on the audited set, or on `threshold.store` with its own searches among the same distractors.
    """
    wanted, subject, where = config.threshold.wanted, inputs.subject, "the audited set"
    if config.threshold.score is not None:
        given = DecisionThreshold(config.threshold.score, "given", "named by the auditor")
        return {"pairs": given} if best_S is None else {"pairs": given, "searches": given}
    if inputs.calibration is not None:
        subject, where = inputs.calibration, str(config.threshold.store)
        if best_S is not None and wanted.fpir is not None:
            best_S = nonmated_max_scores(
                half_gallery_searches(subject.embedded, inputs.gallery, config.statistics.seed)
            )
    found = {}
    if wanted.fmr is not None:
        units = Units.of(subject.enrolled(subject.identities), {})
        everyone = Grouping((), ((),), np.zeros(len(units), dtype=np.int64))
        found["pairs"] = threshold_for_fmr(subject.comparison.histograms(units, everyone).overall, wanted.fmr, where)
    if wanted.fpir is not None and best_S is not None:
        found["searches"] = threshold_for_fpir(best_S, wanted.fpir, where)
    if not found:
        raise UserError("threshold.fpir: a scores file holds no searches; name threshold.fmr or threshold.score")
    one = next(iter(found.values()))
    return {use: found.get(use, one) for use in (("pairs",) if best_S is None else ("pairs", "searches"))}
