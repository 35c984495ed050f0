"""Pair counts against loops over pairs, for any blocks, with identities in one group or in several."""

from itertools import combinations

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.stats.groups import UNKNOWN, PairCounter, Units, group_pairs
from facelt.stats.intervals import rate_intervals

THRESHOLDS = (0.3, 0.6)


@pytest.fixture(scope="module")
def world():
    """12 people, 60 images, gender by person and age by image; every pair of images once, and its score."""
    random = np.random.default_rng(0)
    person_N = np.sort(random.integers(0, 12, 60))
    identity_N = [f"p{i:02}" for i in person_N]
    columns = {
        "gender": [("f", "m")[i % 2] for i in person_N],
        "age": random.choice(["young", "old", ""], 60).tolist(),
    }
    left, right = np.array(list(combinations(range(60), 2))).T
    mated = person_N[left] == person_N[right]
    score = random.uniform(0, 0.7, len(left)) + 0.3 * mated
    return identity_N, columns, (score, mated, left, right)


def counted(world, blocks: int) -> PairCounter:
    identity_N, columns, pairs = world
    counts = PairCounter(Units.from_columns(identity_N, columns), THRESHOLDS)
    for part in np.array_split(np.random.default_rng(blocks).permutation(len(pairs[0])), blocks):
        counts.add(*(value[part] for value in pairs))
    return counts


@pytest.mark.parametrize("by", [["gender"], ["age"], ["gender", "age"]])
@pytest.mark.parametrize("kind", ["mated", "non_mated"])
def test_equal_a_loop_over_pairs(world, by, kind):
    identity_N, columns, (score, mated, left, right) = world
    counts = counted(world, blocks=7)
    grouping = counts.units.grouping(by)
    name_N = list(zip(*(np.where(np.array(columns[c]) == "", UNKNOWN, columns[c]).tolist() for c in by), strict=True))
    for t, threshold in enumerate(THRESHOLDS):
        result = getattr(counts, kind)(t).clustered_counts(counts.units, grouping)
        for f, (a, b) in enumerate(group_pairs(grouping)):
            wanted = {grouping.names[a], grouping.names[b]}
            chosen = [
                m
                for m in range(len(score))
                if mated[m] == (kind == "mated") and {name_N[left[m]], name_N[right[m]]} == wanted
            ]
            wrong = [m for m in chosen if (score[m] >= threshold) != mated[m]]
            assert (result.error_F[f], result.trial_F[f]) == (len(wrong), len(chosen))
            for i, person in enumerate(counts.units.identities):
                for part, count_FI in ((chosen, result.trial_FI), (wrong, result.error_FI)):
                    own = [m for m in part if person in (identity_N[left[m]], identity_N[right[m]])]
                    assert count_FI[f, i] == len(own)


def test_block_boundaries_do_not_matter(world):
    single, many = counted(world, blocks=1), counted(world, blocks=50)
    for t in range(len(THRESHOLDS)):
        np.testing.assert_array_equal(single.non_mated(t).error_UU, many.non_mated(t).error_UU)
        np.testing.assert_array_equal(single.mated(t).trial_UU.toarray(), many.mated(t).trial_UU.toarray())


def test_leaving_an_identity_out_removes_its_pairs_of_both_sides(world):
    identity_N, columns, (score, mated, left, right) = world
    counts = counted(world, blocks=1)
    grouping = counts.units.grouping(["gender"])
    counts = counts.non_mated(0).clustered_counts(counts.units, grouping)
    result = rate_intervals(counts, level=0.95)
    own = group_pairs(grouping).index((0, 0))
    gender_N = np.array(columns["gender"])
    inside = ~mated & (gender_N[left] == "f") & (gender_N[right] == "f")
    without = np.array(identity_N) != "p00"
    kept = inside & without[left] & without[right]
    rate, rest = (score[inside] >= 0.3).mean(), (score[kept] >= 0.3).mean()
    assert result.rate_F[own] == pytest.approx(rate)
    assert abs(result.influence_FI[own, 0]) == pytest.approx(abs(rest - rate))


def test_distractors_belong_to_no_identity():
    identity_N = ["a", "a", "b", "b", "(distractors)", "(distractors)"]
    gender_N = ["f", "f", "m", "m", "(distractors)", "(distractors)"]
    units = Units.from_columns(identity_N, {"gender": gender_N}, fixed_N=np.array([False] * 4 + [True] * 2))
    counts = PairCounter(units, [0.5])
    counts.add([0.9, 0.1, 0.6, 0.2, 0.8], [False] * 5, [0, 1, 2, 3, 0], [4, 5, 4, 5, 5])
    grouping = units.grouping(["gender"])
    result = counts.non_mated(0).clustered_counts(units, grouping)
    f = group_pairs(grouping).index((0, 1))
    assert grouping.names[:2] == (("(distractors)",), ("f",))
    assert (result.error_F[f], result.trial_F[f]) == (2, 3)
    assert result.trial_FI[f].sum() == 3  # each pair involves its probe's identity only


def test_bad_input():
    units = Units.from_columns(["a", "a", "b"], {"gender": ["f", "f", "m"]})
    counts = PairCounter(units, [0.5])
    with pytest.raises(UserError, match="pair 1 of a block is not a number"):
        counts.add([0.1, np.nan], [True, False], [0, 1], [1, 2])
    with pytest.raises(ValueError, match="of a and b, is flagged as mated"):
        counts.add([0.1], [True], [0], [2])
    with pytest.raises(ValueError, match="of a and a, is flagged as non-mated"):
        counts.add([0.1], [False], [0], [1])
    with pytest.raises(ValueError, match="2 scores, 1 labels"):
        counts.add([0.1, 0.2], [True], [0], [1])
    many = Units.from_columns([str(i) for i in range(9000)], {"gender": ["f"] * 9000})
    with pytest.raises(UserError, match="at most 8192 at 1 thresholds"):
        PairCounter(many, [0.5])
