"""Open-set identification: FNIR and FPIR against plain loops and by hand, and undefined rates."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.identification.open_set import open_set_rates, open_set_searches, search_outcomes
from facelt.search.exact import BadRow


def plain_half(probe_PD, identity_P, distractor_GD, enrolled, wanted, rank, novelty=None):
    """Returns FPIR and FNIR of one half from sorted candidate lists, by a loop over thresholds."""
    enrolled_names = {identity_P[e] for e in enrolled}
    mated, nonmated = [], []
    for probe in range(len(probe_PD)):
        if probe in enrolled:
            continue
        candidates = [(float(probe_PD[probe] @ probe_PD[e]), identity_P[e]) for e in enrolled]
        candidates += [(float(probe_PD[probe] @ row), None) for row in distractor_GD]
        if identity_P[probe] in enrolled_names:
            (score,) = [score for score, name in candidates if name == identity_P[probe]]
            is_hit = sum(other > score for other, _ in candidates) < rank
            decision = score if novelty is None else novelty[probe]
            mated.append(decision if is_hit else -math.inf)
        else:
            nonmated.append(
                max((score for score, _ in candidates), default=-math.inf) if novelty is None else novelty[probe]
            )
    if not mated or not nonmated or wanted * len(nonmated) < 1 - 1e-9:
        return None
    fits = [t for t in sorted({*nonmated, math.inf}) if sum(s >= t for s in nonmated) <= wanted * len(nonmated) + 1e-9]
    # From the lowest non-mated score that fits down to the next one any threshold gives the same FPIR; the lowest is
    # just above the score that does not fit.
    below = max((s for s in nonmated if s < fits[0]), default=-math.inf)
    fpir = sum(s > below for s in nonmated) / len(nonmated)
    lowest = fits[0] if below == -math.inf else np.nextafter(below, math.inf)
    return fpir, sum(score < lowest for score in mated) / len(mated)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(0, 30), st.integers(1, 7), st.integers(0, 20), st.integers(1, 4), st.booleans()
)
def test_equals_plain_loops_with_ties(seed, probes, identities, distractors, rank, by_reachability):
    random = np.random.default_rng(seed)
    probe_PD = random.integers(-2, 3, (probes, 3)).astype(np.float32)
    distractor_GD = random.integers(-2, 3, (distractors, 3)).astype(np.float32)
    identity_P = random.choice(["ann", "bob", "cy", "di", "ed", "flo", "gus"][:identities], probes)
    reachability_P = random.integers(0, 5, probes).astype(float) if by_reachability else None
    searches = open_set_searches(probe_PD, identity_P, distractor_GD, rank=rank, seed=seed)
    wanted = (1.0, 0.5, 0.25, 0.1, 0.02)
    rates = open_set_rates(searches, wanted, reachability_P=reachability_P)
    assert rates.score == ("reachability" if by_reachability else "similarity")
    for fpir, point in zip(wanted, rates.points, strict=True):
        halves = [
            plain_half(probe_PD, identity_P, distractor_GD, set(half.enrolled_E), fpir, rank, reachability_P)
            for half in searches.halves
        ]
        if None in halves:
            assert point.fnir is point.fpir is None
            assert not point.halves
            assert point.reason
            continue
        assert point.reason is None
        for measured, expected in zip(point.halves, halves, strict=True):
            assert (measured.fpir, measured.fnir) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
        assert (point.fpir, point.fnir) == (
            pytest.approx(np.mean([half[0] for half in halves])),
            pytest.approx(np.mean([half[1] for half in halves])),
        )


def test_who_is_enrolled_and_who_searches():
    random = np.random.default_rng(0)
    identity_P = np.array([*"aaaaabbbccddddde", *"ffff", "g"])
    probe_PD = random.standard_normal((21, 8))
    distractor_GD = random.standard_normal((50, 8))
    reports = []
    searches = open_set_searches(
        probe_PD, identity_P, distractor_GD, seed=4, cosine=True, progress=lambda *args: reports.append(args)
    )
    assert reports[-1] == ("searching", 50, 50)
    first, second = searches.halves
    assert (len(first.enrolled_E), len(second.enrolled_E)) == (4, 3)
    assert (first.gallery, second.gallery) == (54, 53)
    names = [set(identity_P[half.enrolled_E]) for half in searches.halves]
    assert names[0] | names[1] == set("abcdefg")
    assert not names[0] & names[1]
    for half, own, others in zip(searches.halves, names, names[::-1], strict=True):
        assert len(half.enrolled_E) == len(own)
        assert set(identity_P[half.mated_M]) == {name for name in own if (identity_P == name).sum() > 1}
        assert set(identity_P[half.nonmated_N]) == others
        # Every image is enrolled or searches once.
        assert sorted([*half.enrolled_E, *half.mated_M, *half.nonmated_N]) == list(range(21))


def test_the_seed_decides_and_the_order_of_search_does_not():
    random = np.random.default_rng(1)
    identity_P = np.repeat(np.arange(12), 4)
    probe_PD = random.standard_normal((48, 6))
    drawn = []
    for seed in (0, 0, 1):
        searches = open_set_searches(probe_PD, identity_P, probe_PD[:5] + 0.1, seed=seed)
        drawn.append([half.enrolled_E.tolist() for half in searches.halves])
    assert drawn[0] == drawn[1] != drawn[2]
    # Enrolled people and their images are drawn: over many seeds every image is enrolled about equally often.
    count_P = np.zeros(48)
    for seed in range(200):
        for half in open_set_searches(np.eye(48), identity_P, np.eye(48)[:1], seed=seed).halves[:1]:
            count_P[half.enrolled_E] += 1
    assert count_P.sum() == 200 * 6
    assert 5 < count_P.min() <= count_P.max() < 50


def test_by_hand():
    # Two people on two axes and a distractor between them.
    probe_PD = np.array([[1, 0], [0.9, 0], [0.2, 0.7], [0, 1], [0, 0.8]], dtype=np.float32)
    searches = open_set_searches(probe_PD, np.array([0, 0, 0, 1, 1]), np.array([[0.5, 0.5]]), seed=0)
    for half in searches.halves:
        assert half.gallery == 2
        (enrolled,) = half.enrolled_E
        for search, rank, score in zip(half.mated_M, half.mate_rank_M, half.mate_score_M, strict=True):
            assert score == pytest.approx(float(probe_PD[search] @ probe_PD[enrolled]), abs=1e-7)
            assert rank == 1 + (probe_PD[search] @ np.array([0.5, 0.5]) > score)
    point = open_set_rates(searches, (1.0,)).points[0]
    assert point.fpir == 1.0
    # At FPIR 1 the lowest non-mated score is the threshold.
    assert [half.threshold for half in point.halves] == [half.best_score_N.min() for half in searches.halves]
    for half, rates in zip(searches.halves, point.halves, strict=True):
        missed_M, positive_N = search_outcomes(half, rates.threshold, searches.rank)
        assert (missed_M.mean(), positive_N.mean()) == (rates.fnir, 1.0)


def test_reachability_is_a_number_of_the_probe_alone():
    random = np.random.default_rng(2)
    identity_P = np.repeat(np.arange(4), 30)
    probe_PD = (10 * np.eye(4)[identity_P] + random.standard_normal((120, 4))).astype(np.float32)
    searches = open_set_searches(probe_PD, identity_P, np.full((3, 4), -1.0), seed=0)
    # By similarity all mates match; equal reachability cannot separate known from unknown people.
    assert open_set_rates(searches, (0.1,)).points[0].fnir < 0.2
    flat = open_set_rates(searches, (0.1, 1.0), reachability_P=np.ones(120)).points
    assert (flat[0].fpir, flat[0].fnir) == (0.0, 1.0)
    assert (flat[1].fpir, flat[1].fnir) == (1.0, 0.0)
    with pytest.raises(ValueError, match="reachability of probe 7 is not finite"):
        open_set_rates(searches, reachability_P=np.where(np.arange(120) == 7, np.inf, 1))


def test_the_curve_falls_and_holds_the_points():
    random = np.random.default_rng(3)
    identity_P = np.repeat(np.arange(20), 20)
    probe_PD = random.standard_normal((20, 16))[identity_P] + random.standard_normal((400, 16))
    searches = open_set_searches(probe_PD, identity_P, random.standard_normal((500, 16)), cosine=True)
    rates = open_set_rates(searches)
    assert (np.diff(rates.fpir_K) > 0).all()
    assert (np.diff(rates.fnir_K) <= 0).all()
    assert rates.fpir_K[-1] == 1.0
    assert rates.fpir_K[0] == 1 / 200
    at = dict(zip(rates.fpir_K.round(9), rates.fnir_K, strict=True))
    tenth, hundredth, nist, thousandth = rates.points
    assert at[round(tenth.fpir, 9)] == tenth.fnir
    assert at[round(hundredth.fpir, 9)] == hundredth.fnir
    assert (tenth.supported, hundredth.supported) == (False, False)
    assert nist.reason == "a rate of 0.003 needs 334 non-mated searches; half 1 has 200"
    assert thousandth.reason == "a rate of 0.001 needs 1,000 non-mated searches; half 1 has 200"


@pytest.mark.parametrize(
    ("identities", "reason"),
    [
        ([], "half 1 has 0 mated and 0 non-mated searches"),
        ([5, 5, 5], "half 1 has 2 mated and 0 non-mated searches"),
        ([1, 2, 3, 4], "half 1 has 0 mated and 2 non-mated searches"),
    ],
)
def test_without_searches_there_is_a_reason_and_no_number(identities, reason):
    probe_PD = np.eye(5)[: len(identities)]
    rates = open_set_rates(open_set_searches(probe_PD, np.array(identities, dtype=int), np.eye(5)), (0.5,))
    assert rates.points[0].reason == reason
    assert rates.points[0].fnir is None
    assert len(rates.fpir_K) == len(rates.fnir_K) == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rank 0"):
        open_set_searches(np.eye(2), np.zeros(2), np.eye(2), rank=0)
    with pytest.raises(ValueError, match="3 identities for 2 probes"):
        open_set_searches(np.eye(2), np.zeros(3), np.eye(2))
    with pytest.raises(BadRow, match="row 1 of the query has length zero"):
        open_set_searches(np.array([[1.0, 0], [0, 0]]), np.arange(2), np.eye(2), cosine=True)
    with pytest.raises(ValueError, match="FPIR 2: must"):
        open_set_rates(open_set_searches(np.eye(2), np.arange(2), np.eye(2)), (2,))
