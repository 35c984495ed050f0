"""Rank-k over mate pairs: by hand with ties, and against nested loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.identification.rank import hit_ranks, mate_pairs, probe_hits
from facelt.search.top_k import top_k


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 6), max_size=30))
def test_pairs_equal_a_double_loop(identities):
    pairs = mate_pairs(np.array(identities, dtype=np.int64))
    expected = {
        (mate, probe)
        for probe in range(len(identities))
        for mate in range(len(identities))
        if mate != probe and identities[mate] == identities[probe]
    }
    result = list(zip(pairs.mate_M.tolist(), pairs.probe_M.tolist(), strict=True))
    assert len(result) == len(set(result)) == len(pairs)
    assert set(result) == expected


def test_ties_are_hits_by_hand():
    # One probe, mates scoring 5, 4, 3, 2.9 against distractors 5, 4, 4, 3.
    distractor_PK = np.array([[5.0, 4.0, 4.0, 3.0]])
    ranks = hit_ranks(np.array([5.0, 4.0, 3.0, 2.9]), np.zeros(4, dtype=int), distractor_PK)
    assert ranks.tolist() == [1, 2, 4, 5]
    # Pairs hit at rank 1, 2, 3 and 4; the one at rank 5 never.
    assert probe_hits(ranks, np.zeros(4, dtype=int), probes=2, ranks=4).tolist() == [[1, 2, 2, 3], [0, 0, 0, 0]]


def test_fewer_distractors_than_ranks_cannot_miss():
    distractor_PK = np.array([[9.0, -np.inf, -np.inf]])
    assert hit_ranks(np.array([1.0, 9.0]), np.zeros(2, dtype=int), distractor_PK).tolist() == [2, 1]


def test_a_distractor_equal_to_the_mate_is_a_tie():
    # The same photograph is a mate of probe 0 and a distractor; products are rounded depending on the position.
    random = np.random.default_rng(0)
    probe_PD = random.standard_normal((40, 33)).astype(np.float32)
    pairs = mate_pairs(np.zeros(40, dtype=int))
    top_SPK, _ = top_k(probe_PD, probe_PD[::-1], 40)
    rank_M = hit_ranks(pairs.scores(probe_PD, cosine=False), pairs.probe_M, top_SPK[0])
    # The gallery contains every mate; only better mates and the probe itself rank before it.
    score_PP = probe_PD.astype(np.float64) @ probe_PD.T.astype(np.float64)
    for mate, probe, rank in zip(pairs.mate_M, pairs.probe_M, rank_M, strict=True):
        better = sum(score_PP[probe, other] > score_PP[probe, mate] for other in range(40) if other != mate)
        assert rank == 1 + better


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(0, 15), st.integers(1, 6))
def test_equals_three_plain_loops(seed, probes, distractors, ranks):
    random = np.random.default_rng(seed)
    probe_PD = random.integers(-2, 3, (probes, 3)).astype(np.float32)
    distractor_GD = random.integers(-2, 3, (distractors, 3)).astype(np.float32)
    identity_P = random.integers(0, 4, probes)
    expected = np.zeros((probes, ranks), dtype=int)
    for probe in range(probes):
        best = sorted((float(probe_PD[probe] @ row) for row in distractor_GD), reverse=True)
        for mate in range(probes):
            if mate != probe and identity_P[mate] == identity_P[probe]:
                score = float(probe_PD[probe] @ probe_PD[mate])
                for r in range(1, ranks + 1):
                    expected[probe, r - 1] += r > len(best) or score >= best[r - 1]
    pairs = mate_pairs(identity_P)
    top_SPK, _ = top_k(probe_PD, distractor_GD, ranks)
    rank_M = hit_ranks(pairs.scores(probe_PD, cosine=False), pairs.probe_M, top_SPK[0])
    np.testing.assert_array_equal(probe_hits(rank_M, pairs.probe_M, probes, ranks), expected)


def test_too_many_ranks():
    with pytest.raises(ValueError, match="254"):
        hit_ranks(np.zeros(1), np.zeros(1, dtype=int), np.zeros((1, 255)))
