"""All-pairs verification: errors and histograms against loops over pairs, with ties, groups and any block size."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.identification import all_pairs
from facelt.identification.all_pairs import PairErrors, PairHistograms, pair_errors, pair_histograms
from facelt.identification.error_rates import ScoreGrid
from facelt.search.exact import BadRow, similarities
from facelt.stats.groups import PairCounter, Units, group_pairs


def people(random, images, identities):
    """Returns units of images with gender by identity and age band by image."""
    identity_N = random.integers(0, identities, images)
    gender_N = np.where(identity_N % 2, "m", "f")
    return identity_N, Units.from_columns(
        identity_N, {"gender": gender_N, "age": random.choice(["old", "young"], images)}
    )


def plain_pairs(rows_ND, identity_N, cosine):
    """Returns (score, mated, left, right) of each pair, in float64."""
    rows_ND = np.asarray(rows_ND, dtype=np.float64)
    if cosine:
        rows_ND = rows_ND / np.linalg.norm(rows_ND, axis=1)[:, None]
    return [
        (float(rows_ND[a] @ rows_ND[b]), bool(identity_N[a] == identity_N[b]), a, b)
        for a, b in itertools.combinations(range(len(rows_ND)), 2)
    ]


def dense(counts):
    return counts if isinstance(counts, np.ndarray) else counts.toarray()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(1, 6), st.integers(1, 400))
def test_errors_equal_plain_counts_with_ties(seed, images, identities, scores):
    random = np.random.default_rng(seed)
    rows_ND = random.integers(-2, 3, (images, 3)).astype(np.float32)
    identity_N, units = people(random, images, identities)
    thresholds = (-20.0, -1.0, 0.0, 1.0, 2.0, 20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_pairs, "MAX_TRIANGLE_SCORES", scores)
        errors = pair_errors(rows_ND, units, thresholds)
    expected = np.zeros((2, len(thresholds), len(units), len(units)))
    trial = np.zeros((2, len(units), len(units)))
    for score, mated, left, right in plain_pairs(rows_ND, identity_N, cosine=False):
        for a, b in ((left, right), (right, left)):
            cell = units.unit_N[a], units.unit_N[b]
            trial[int(mated)][cell] += 1
            for t, threshold in enumerate(thresholds):
                expected[int(mated), t][cell] += mated != (score >= threshold)
    for t in range(len(thresholds)):
        for mated, pairs in enumerate((errors.non_mated[t], errors.mated[t])):
            assert pairs.mated == bool(mated)
            np.testing.assert_array_equal(dense(pairs.error_UU), expected[mated, t])
            np.testing.assert_array_equal(dense(pairs.trial_UU), trial[mated])


def test_figures_of_groups_equal_the_ones_added_up_pair_by_pair():
    random = np.random.default_rng(5)
    centre_ID = random.standard_normal((7, 12))
    identity_N, units = people(random, 60, 7)
    rows_ND = (centre_ID[identity_N] + random.standard_normal((60, 12))).astype(np.float16)
    pairs = plain_pairs(rows_ND, identity_N, cosine=True)
    score_M, mated_M, left_M, right_M = (np.array(column) for column in zip(*pairs, strict=True))
    # Thresholds that are scores: equal is a match, to the last bit of float64.
    raw_ND = rows_ND.astype(np.float32)
    exact_M = similarities(raw_ND, left_M, raw_ND, right_M, cosine=True)
    thresholds = (exact_M[3], np.nextafter(exact_M[3], 2), 0.2, 0.6)
    second = PairCounter(units, thresholds)
    second.add(exact_M, mated_M, left_M, right_M)
    first = pair_errors(rows_ND, units, thresholds, cosine=True)
    assert isinstance(first, PairErrors)
    grouping = units.grouping(["gender", "age"])
    for t in range(len(thresholds)):
        for ours, theirs in ((first.mated[t], second.mated(t)), (first.non_mated[t], second.non_mated(t))):
            a, b = ours.clustered_counts(units, grouping), theirs.clustered_counts(units, grouping)
            for name in ("error_F", "trial_F", "error_FI", "trial_FI"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    # One pair more matches at its own score than just above it.
    loose, strict = ((first.non_mated[t].error_UU.sum() - first.mated[t].error_UU.sum()) / 2 for t in (0, 1))
    assert loose - strict == 1
    # By hand, women against men at 0.6.
    both = units.grouping(["gender"])
    counts = first.non_mated[3].clustered_counts(units, both)
    women_M, men_M = (np.isin(identity_N, ids) for ids in ([0, 2, 4, 6], [1, 3, 5]))
    cross_M = (women_M[left_M] & men_M[right_M]) | (men_M[left_M] & women_M[right_M])
    index = group_pairs(both).index((0, 1))
    assert counts.trial_F[index] == cross_M.sum()
    assert counts.error_F[index] == (score_M[cross_M] >= 0.6).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(1, 400))
def test_histograms_equal_plain_counts(seed, images, scores):
    random = np.random.default_rng(seed)
    rows_ND = random.integers(-2, 3, (images, 3)).astype(np.float32)
    identity_N, units = people(random, images, 5)
    grouping = units.grouping(["gender", "age"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_pairs, "MAX_TRIANGLE_SCORES", scores)
        result = pair_histograms(rows_ND, units, grouping)
    second = PairHistograms(units, grouping, result.grid)
    pairs = plain_pairs(rows_ND, identity_N, cosine=False)
    if pairs:
        second.add(*(np.array(column) for column in zip(*pairs, strict=True)))
    group_N = grouping.group_U[units.unit_N]
    for threshold in (-3.0, 0.0, 1.0, 4.0):
        # Whole scores lie in the middle of a bin.
        first_bin = np.searchsorted(result.grid.threshold(np.arange(result.grid.bins)), threshold) - 1
        for histograms, members in [(result.overall, None)] + [(result.within(g), g) for g in range(len(grouping))]:
            for counts, mated in ((histograms.mated_B, True), (histograms.nonmated_B, False)):
                is_accepted = [
                    score >= threshold
                    for score, is_mated, a, b in pairs
                    if is_mated == mated and (members is None or group_N[a] == group_N[b] == members)
                ]
                assert (counts.sum(), counts[first_bin:].sum()) == (len(is_accepted), sum(is_accepted))
    for g in range(len(grouping)):
        np.testing.assert_array_equal(result.within(g).mated_B, second.within(g).mated_B)
        np.testing.assert_array_equal(result.within(g).nonmated_B, second.within(g).nonmated_B)
    np.testing.assert_array_equal(result.overall.nonmated_B, second.overall.nonmated_B)


def test_a_threshold_set_on_the_histograms_holds_among_the_exact_counts():
    random = np.random.default_rng(2)
    identity_N, units = people(random, 150, 12)
    rows_ND = (random.standard_normal((12, 32))[identity_N] + 1.5 * random.standard_normal((150, 32))).astype(
        np.float32
    )
    grouping = units.grouping(["gender"])
    reports = []
    histograms = pair_histograms(rows_ND, units, grouping, cosine=True, progress=lambda *args: reports.append(args))
    assert reports[-1] == ("comparing pairs", 150, 150)
    point = histograms.overall.point(0.01)
    errors = pair_errors(rows_ND, units, [point.threshold], cosine=True)
    trials = errors.non_mated[0].trial_UU.sum() / 2
    assert errors.non_mated[0].error_UU.sum() / 2 / trials == pytest.approx(point.fmr, abs=1 / trials)
    assert errors.mated[0].error_UU.sum() / errors.mated[0].trial_UU.sum() == pytest.approx(point.fnmr, abs=0.002)
    assert len(histograms.within(0).det().fmr_T) > 10


def test_a_collection_of_strangers_has_no_mates():
    rows_ND = np.eye(4, dtype=np.float32)
    units = Units.from_columns(
        ["a", "a", "", ""], {"gender": ["f", "f", "", ""]}, fixed_N=np.array([0, 0, 1, 1], dtype=bool)
    )
    errors = pair_errors(rows_ND, units, [0.0])
    assert errors.mated[0].trial_UU.sum() == 2
    assert errors.non_mated[0].trial_UU.sum() == errors.non_mated[0].error_UU.sum() == 10
    overall = pair_histograms(rows_ND, units, units.grouping(["gender"])).overall
    assert (overall.mated, overall.nonmated) == (1, 5)


def test_bad_input_is_refused(monkeypatch):
    units = Units.from_columns(["a", "b"], {"g": ["x", "y"]})
    grouping = units.grouping(["g"])
    with pytest.raises(BadRow, match="row 1 of the query has length zero"):
        pair_errors(np.array([[1.0, 0.0], [0.0, 0.0]]), units, [0.5], cosine=True)
    with pytest.raises(ValueError, match="3 embeddings for 2 images"):
        pair_errors(np.eye(3), units, [0.5])
    with pytest.raises(ValueError, match="3 embeddings for 2 images"):
        pair_histograms(np.eye(3), units, grouping)
    with pytest.raises(ValueError, match="must be finite"):
        pair_errors(np.eye(2), units, [np.nan])
    histograms = PairHistograms(units, grouping, ScoreGrid(1.0, 16))
    with pytest.raises(ValueError, match="beyond the grid, which ends at 1"):
        histograms.add(np.array([np.nan]), np.array([False]), np.array([0]), np.array([1]))
    with pytest.raises(ValueError, match="1 scores, 2 labels"):
        histograms.add(np.zeros(1), np.zeros(2, dtype=bool), np.zeros(1, dtype=int), np.ones(1, dtype=int))
    monkeypatch.setattr(all_pairs, "MAX_COUNT_CELLS", 7)
    with pytest.raises(UserError, match="too many to compare"):
        pair_errors(np.eye(2), units, [0.5])
