"""Rate tables by group against counting by hand, with small and empty groups; contrasts of their rows."""

from itertools import combinations

import numpy as np
import pytest

from facelt.stats.comparisons import decide, pairwise_contrasts
from facelt.stats.disparity import DISPARITY_MEASURES
from facelt.stats.groups import PairCounter, Units, group_sizes, pair_table, search_table

OPTIONS = {"level": 0.95, "least_identities": 2}

# 4 women of 3 images, 3 men of 2 and 1 person of unknown gender; age by image.
IDENTITY = [*np.repeat(["a", "b", "c", "d"], 3), *np.repeat(["k", "l", "m"], 2), "x"]
GENDER = ["f"] * 12 + ["m"] * 6 + [""]
AGE = (["young", "old", "old"] * 4) + ["old", "young"] * 3 + ["old"]


@pytest.fixture(scope="module")
def units() -> Units:
    return Units.from_columns(IDENTITY, {"gender": GENDER, "age": AGE})


@pytest.fixture(scope="module")
def pairs():
    left, right = np.array(list(combinations(range(len(IDENTITY)), 2))).T
    mated = np.array(IDENTITY)[left] == np.array(IDENTITY)[right]
    score = np.random.default_rng(0).uniform(0, 0.9, len(left)) + 0.1 * mated
    return score, mated, left, right


def by_unit(units: Units, value_N) -> np.ndarray:
    return np.bincount(units.unit_N, weights=value_N, minlength=len(units))


def test_searches_by_hand(units):
    # Of each woman's 3 searches the first misses, of the men's none, of the unknown one all.
    missed_N = [1, 0, 0] * 4 + [0] * 6 + [1]
    counts = by_unit(units, missed_N), by_unit(units, [1] * 19)
    table = search_table("miss", *counts, units, units.grouping(["gender"]), **OPTIONS)
    unknown, women, men = table.rows
    assert (women.group, women.events, women.trials, women.identities) == (("f",), 4, 12, 4)
    assert women.rate == pytest.approx(1 / 3)
    assert women.low < 1 / 3 < women.high
    assert (men.rate, men.low, men.trials, men.small) == (0, 0, 6, False)
    assert (unknown.group, unknown.rate, unknown.low, unknown.small) == (("(unknown)",), 1.0, None, True)
    assert table.large() == (1, 2)
    result = DISPARITY_MEASURES["ratio"].from_counts(table.errors("miss"))
    assert result.at_least
    assert result.value == max(1, women.rate / min(men.high, women.rate))
    both = search_table("miss", *counts, units, units.grouping(["gender", "age"]), **OPTIONS)
    assert [(row.group, row.events, row.trials) for row in both.rows] == [
        (("(unknown)", "old"), 1, 1),
        (("f", "old"), 0, 8),
        (("f", "young"), 4, 4),
        (("m", "old"), 0, 3),
        (("m", "young"), 0, 3),
    ]


@pytest.mark.parametrize("by", [["gender"], ["age"], ["gender", "age"]])
@pytest.mark.parametrize("across", [False, True])
def test_pairs_by_a_loop(units, pairs, by, across):
    score, mated, left, right = pairs
    counts = PairCounter(units, [0.4])
    counts.add(*pairs)
    columns = {"gender": [g or "(unknown)" for g in GENDER], "age": AGE}
    name_N = list(zip(*(columns[c] for c in by), strict=True))
    for kind, is_mated in (("fmr", False), ("fnmr", True)):
        unit_pairs = counts.mated(0) if is_mated else counts.non_mated(0)
        table = pair_table(kind, unit_pairs, units, units.grouping(by), across=across, **OPTIONS)
        groups = len(set(name_N))
        assert len(table.rows) == (groups * (groups + 1) // 2 if across else groups)
        assert table.by == (tuple(f"{side} {c}" for side in ("left", "right") for c in by) if across else tuple(by))
        for row in table.rows:
            wanted = {row.group[: len(by)], row.group[-len(by) :]}
            chosen = [
                m for m in range(len(score)) if mated[m] == is_mated and {name_N[left[m]], name_N[right[m]]} == wanted
            ]
            wrong = [m for m in chosen if (score[m] >= 0.4) != is_mated]
            assert (row.events, row.trials) == (len(wrong), len(chosen))
            assert row.rate == (pytest.approx(len(wrong) / len(chosen)) if chosen else None)
            people = {IDENTITY[end[m]] for m in chosen for end in (left, right)}
            assert row.identities == len(people)
            assert row.small == (len(people) < 2)
            assert row.effective is None or row.effective <= row.trials


def test_a_group_without_pairs_is_shown(units, pairs):
    counts = PairCounter(units, [0.4])
    counts.add(*pairs)
    row = pair_table("fmr", counts.non_mated(0), units, units.grouping(["gender"]), **OPTIONS).rows[0]
    assert row.group == ("(unknown)",)
    assert (row.rate, row.low, row.high, row.effective) == (None,) * 4
    assert (row.trials, row.identities, row.small) == (0, 0, True)


def test_distractors_are_compared_but_form_no_group():
    units = Units.from_columns(
        ["a", "b", "c", "d", "(distractors)"],
        {"gender": ["f", "f", "m", "m", "(distractors)"]},
        fixed_N=np.array([False] * 4 + [True]),
    )
    counts = PairCounter(units, [0.5])
    counts.add([0.9, 0.1, 0.2, 0.8, 0.6], [False] * 5, [0, 1, 2, 3, 3], [4, 4, 4, 4, 4])
    grouping = units.grouping(["gender"])
    table = pair_table("fmr", counts.non_mated(0), units, grouping, across=True, **OPTIONS)
    rates = {row.group: (row.events, row.trials, row.identities) for row in table.rows if row.trials}
    assert rates == {("(distractors)", "f"): (1, 2, 2), ("(distractors)", "m"): (2, 3, 2)}
    own = pair_table("fmr", counts.non_mated(0), units, grouping, **OPTIONS)
    assert [row.group for row in own.rows] == [("f",), ("m",)]
    searched = search_table(
        "miss", by_unit(units, [0, 1, 0, 1, 1]), by_unit(units, [0, 1, 1, 1, 1]), units, grouping, **OPTIONS
    )
    assert [(row.group, row.events, row.trials) for row in searched.rows] == [(("f",), 1, 1), (("m",), 1, 2)]


def test_sizes_by_hand(units):
    failed_N = np.zeros(19, dtype=bool)
    failed_N[[0, 1, 12]] = True
    unknown, women, men = group_sizes(units, units.grouping(["gender"]), failed_N, least_identities=3)
    assert (women.group, women.identities, women.images, women.failures) == (("f",), 4, 12, 2)
    assert women.failure_rate == pytest.approx(2 / 12)
    assert (men.identities, men.images, men.failures, men.small) == (3, 6, 1, False)
    assert (unknown.identities, unknown.images, unknown.failures, unknown.small) == (1, 1, 0, True)


def test_a_group_has_the_same_limits_in_both_tables_even_without_errors(units, pairs):
    counts = PairCounter(units, [0.4])
    scores, *rest = pairs
    # No pair of two men matches.
    men = [index for index, gender in enumerate(GENDER) if gender == "m"]
    scores = np.where(np.isin(rest[1], men) & np.isin(rest[2], men) & ~rest[0], 0.0, scores)
    counts.add(scores, *rest)
    grouping = units.grouping(["gender"])
    own = pair_table("fmr", counts.non_mated(0), units, grouping, **OPTIONS)
    across = pair_table("fmr", counts.non_mated(0), units, grouping, across=True, **OPTIONS)
    between = {row.group: row for row in across.rows}
    for row in own.rows:
        same = between[row.group * 2]
        assert (row.rate, row.low, row.high) == (same.rate, same.low, same.high)
    assert {row.group: row.rate for row in own.rows}["m",] == 0
    assert 0 < {row.group: row.high for row in own.rows}["m",] < 1


def test_contrasts_of_searches():
    random = np.random.default_rng(0)
    identity = np.repeat([f"p{i:02}" for i in range(45)], 10)
    group = np.repeat(["a", "b", "c"], 150)
    miss = random.binomial(1, np.repeat([0.05, 0.1, 0.6], 150))
    units = Units.from_columns(identity, {"g": group})
    counts = by_unit(units, miss), by_unit(units, np.ones(450))
    table = search_table("miss", *counts, units, units.grouping(["g"]), **OPTIONS)
    result = pairwise_contrasts(table)
    assert [(contrast.first, contrast.second) for contrast in result][:2] == [(("c",), ("a",)), (("c",), ("b",))]
    largest, _, smallest = result
    clear, _, unclear = decide([contrast.pair for contrast in result], level=0.95)
    rates = [miss[group == g].mean() for g in "abc"]
    assert largest.difference == pytest.approx(rates[2] - rates[0])
    assert largest.ratio == pytest.approx(rates[2] / rates[0])
    assert 0.3 < largest.low < largest.difference < largest.high < 0.8
    assert clear.p < 2e-4
    assert clear.adjusted_p in (pytest.approx(2 * clear.p), pytest.approx(3 * clear.p))
    assert clear.decided
    assert unclear.p > 0.01
    assert smallest.low < smallest.difference < smallest.high


def test_contrasts_of_pairs_and_of_people_in_several_groups(units, pairs):
    counts = PairCounter(units, [0.4])
    counts.add(*pairs)
    unit_pairs = counts.non_mated(0)
    table = pair_table("fmr", unit_pairs, units, units.grouping(["gender"]), **OPTIONS)
    (contrast,) = pairwise_contrasts(table)
    assert contrast.difference >= 0
    assert 0 < decide([contrast.pair], level=0.95)[0].p <= 1
    by_age = pair_table("fmr", unit_pairs, units, units.grouping(["age"]), **OPTIONS)
    (contrast,) = pairwise_contrasts(by_age)
    assert contrast.identities == 8
    assert 0 < decide([contrast.pair], level=0.95)[0].p <= 1
    assert contrast.low < contrast.difference < contrast.high
