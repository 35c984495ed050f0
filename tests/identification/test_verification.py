"""Verification against loops over all pairs: ties, blocks, and unsupported rates."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.identification import verification
from facelt.identification.verification import verification_rates
from facelt.search.exact import BadRow


def plain_point(mated, nonmated, far):
    """Returns (threshold below which the FAR is exceeded, FMR, FNMR) from sorted lists."""
    ordered = sorted(nonmated, reverse=True)
    allowed = math.floor(far * len(ordered) + 1e-9)
    too_many = ordered[allowed] if allowed < len(ordered) else -math.inf
    accepted = sum(score > too_many for score in nonmated)
    return too_many, accepted / len(nonmated), sum(score <= too_many for score in mated) / len(mated)


def plain_scores(probe_PD, identity_P, distractor_GD, cosine):
    probes, distractors = (np.asarray(rows, dtype=np.float64) for rows in (probe_PD, distractor_GD))
    if cosine:
        probes, distractors = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (probes, distractors))
    mated = [
        float(probes[a] @ probes[b])
        for a in range(len(probes))
        for b in range(a)
        if identity_P[a] == identity_P[b]
    ]  # fmt: skip
    return mated, [float(probe @ row) for probe in probes for row in distractors]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 40), st.integers(1, 3))
def test_whole_numbers_with_ties_equal_plain_loops(seed, probes, distractors, identities):
    random = np.random.default_rng(seed)
    probe_PD = random.integers(-2, 3, (probes, 3)).astype(np.float32)
    distractor_GD = random.integers(-3, 4, (distractors, 3)).astype(np.float32)
    identity_P = random.integers(0, identities, probes)
    fars = (0.02, 0.1, 0.25, 0.5, 1.0)
    mated, nonmated = plain_scores(probe_PD, identity_P, distractor_GD, cosine=False)
    rates = verification_rates(probe_PD, identity_P, distractor_GD, fars=fars)
    assert (rates.histograms.mated, rates.histograms.nonmated) == (len(mated), len(nonmated))
    for far, point in zip(fars, rates.points, strict=True):
        if not mated or far * len(nonmated) < 1:
            assert point.reason
            assert point.threshold is point.fmr is point.tar is None
            continue
        too_many, fmr, fnmr = plain_point(mated, nonmated, far)
        assert (point.fmr, point.fnmr) == (fmr, pytest.approx(fnmr, abs=1e-12))
        assert point.false_matches == round(fmr * len(nonmated))
        # The threshold lies between the first score in excess and the next higher one.
        assert point.threshold > too_many
        assert all(score >= point.threshold for score in nonmated if score > too_many)
        assert point.supported == (math.floor(far * len(nonmated) + 1e-9) >= 30)


def test_cosines_of_many_blocks_equal_plain_loops(monkeypatch):
    monkeypatch.setattr(verification, "MAX_PASS_SCORES", 100)
    random = np.random.default_rng(3)
    centre_ID = random.standard_normal((8, 16))
    identity_P = np.repeat(np.arange(8), 5)
    probe_PD = (centre_ID[identity_P] + 0.8 * random.standard_normal((40, 16))).astype(np.float16)
    distractor_GD = random.standard_normal((300, 16)).astype(np.float32)
    reports = []
    rates = verification_rates(
        probe_PD, identity_P, distractor_GD, fars=(1e-3, 1e-2), cosine=True, progress=lambda *args: reports.append(args)
    )
    assert reports[-1] == ("comparing non-mated pairs", 300, 300)
    assert len(reports) > 100
    mated, nonmated = plain_scores(probe_PD, identity_P, distractor_GD, cosine=True)
    for far, point in zip((1e-3, 1e-2), rates.points, strict=True):
        too_many, fmr, fnmr = plain_point(mated, nonmated, far)
        assert point.threshold == pytest.approx(too_many, abs=4e-6)
        assert (point.fmr, point.fnmr) == (pytest.approx(fmr, abs=1e-12), pytest.approx(fnmr, abs=1e-12))
    assert [point.supported for point in rates.points] == [False, True]
    assert rates.histograms.smallest_fmr == 30 / 12000


def test_equal_scores_are_all_or_nothing():
    rows_ND = np.full((6, 4), 0.5, dtype=np.float32)
    rates = verification_rates(
        rows_ND, np.zeros(6, dtype=int), np.repeat(rows_ND, 20, axis=0), fars=(0.5, 1.0), cosine=True
    )
    half, whole = rates.points
    assert (half.fmr, half.tar, half.false_matches) == (0.0, 0.0, 0)
    assert (whole.fmr, whole.tar) == (1.0, 1.0)
    assert whole.threshold <= 1.0 < half.threshold
    assert rates.det.fmr_T.tolist() == [0.0, 1.0]
    assert rates.det.fnmr_T.tolist() == [1.0, 0.0]


def test_a_photograph_among_the_distractors_ties_with_itself_as_a_mate():
    # Cosines of 1 are equal after rounding in float32 and in float64.
    random = np.random.default_rng(0)
    for dimension in (3, 33, 128):
        row_1D = random.standard_normal((1, dimension)).astype(np.float32)
        probe_PD = np.repeat(row_1D, 2, axis=0) * np.array([[1.0], [3.0]], dtype=np.float32)
        (point,) = verification_rates(probe_PD, np.zeros(2, dtype=int), probe_PD[:1], fars=(0.5,), cosine=True).points
        assert (point.fmr, point.tar) == (0.0, 0.0)


def test_det_falls_from_all_to_none_and_holds_the_points():
    random = np.random.default_rng(1)
    probe_PD = random.standard_normal((30, 8)).astype(np.float32)
    identity_P = np.arange(30) // 3
    distractor_GD = random.standard_normal((200, 8))
    rates = verification_rates(probe_PD, identity_P, distractor_GD, fars=(0.1,), cosine=True)
    det = rates.det
    assert (np.diff(det.threshold_T) < 0).all()
    assert (np.diff(det.fmr_T) > 0).all()
    assert (np.diff(det.fnmr_T) <= 0).all()
    assert det.fmr_T[-1] == 1.0
    assert det.fnmr_T[-1] == 0.0
    assert det.fmr_T[0] == 1 / 6000
    (index,) = np.flatnonzero(np.isclose(det.fmr_T, rates.points[0].fmr, rtol=0, atol=1e-12))
    assert det.fnmr_T[index] == rates.points[0].fnmr
    mated, nonmated = (np.array(scores) for scores in plain_scores(probe_PD, identity_P, distractor_GD, cosine=True))
    for threshold, fmr, fnmr in zip(det.threshold_T, det.fmr_T, det.fnmr_T, strict=True):
        assert fnmr == pytest.approx(np.mean(mated < threshold), abs=1e-12)
        # The threshold lies next to the first score in excess, closer than the rounding of a product.
        assert np.mean(nonmated >= threshold + 1e-6) <= fmr <= np.mean(nonmated >= threshold - 1e-6)


def test_long_rows_fit_on_the_grid():
    # The longest row is a distractor, much longer than any probe.
    probe_PD = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    distractor_GD = np.array([[1000, 0], [0.5, 0], [-2000, 3], [0, 0]], dtype=np.float32)
    (point,) = verification_rates(probe_PD, np.array([0, 0, 1, 1]), distractor_GD, fars=(0.25,)).points
    # 16 non-mated scores: 1000, 3, 0.5 and 0 twice each or more; four may match, and the mates score 1.
    assert (point.false_matches, point.fnmr) == (4, 0.0)
    assert 0.5 < point.threshold <= 1


def test_without_distractors_or_mates_there_is_a_reason_and_no_number():
    probe_PD = np.eye(3, dtype=np.float32)
    alone = verification_rates(probe_PD, np.arange(3), np.eye(3), fars=(0.5,))
    assert alone.points[0].tar is None
    assert alone.points[0].reason == "there are 0 mated and 9 non-mated comparisons"
    empty = verification_rates(probe_PD, np.zeros(3, dtype=int), np.zeros((0, 3)), fars=(0.5,))
    assert empty.points[0].reason == "there are 3 mated and 0 non-mated comparisons"
    assert len(empty.det.fmr_T) == 0
    assert empty.histograms.smallest_fmr is None
    few = verification_rates(probe_PD, np.zeros(3, dtype=int), np.eye(3), fars=(0.1,))
    assert few.points[0].reason == "a rate of 0.1 needs 10 non-mated comparisons; there are 9"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="FAR 0: must"):
        verification_rates(np.eye(2), np.zeros(2, dtype=int), np.eye(2), fars=(0,))
    with pytest.raises(UserError, match="one dimension"):
        verification_rates(np.eye(2), np.zeros(2, dtype=int), np.eye(3))
    with pytest.raises(BadRow, match="row 1 of the database has length zero"):
        verification_rates(np.eye(2), np.zeros(2, dtype=int), np.array([[1, 0], [0, 0]]), cosine=True)
    with pytest.raises(BadRow, match="row 0 of the query holds a value that is not finite"):
        verification_rates(np.array([[np.nan, 0]]), np.zeros(1, dtype=int), np.eye(2))
