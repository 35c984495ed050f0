"""Ranking of people from ranked samples, including many samples of one person."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.gallery import backend
from facelt.gallery.backend import rank_people
from facelt.gallery.index import IndexSnapshot
from facelt.gallery.samples import SampleRows
from facelt.search.factory import open_engine


class Rows:
    """Embedding rows in memory, with the interface of a mapped index."""

    def __init__(self, rows: SampleRows) -> None:
        self.rows, self.count = rows, len(rows)
        length_N = np.linalg.norm(rows.row_ND.astype(np.float64), axis=1)
        self.max_norm, self.max_norm_error = length_N.max(initial=0), np.abs(length_N - 1).max(initial=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 60),
    late=st.integers(0, 20),
    persons=st.integers(1, 12),
    k=st.integers(1, 15),
    most=st.sampled_from([2, 8, 2048]),
    cosine=st.booleans(),
    floor=st.sampled_from([-np.inf, -0.5, 0.0, 0.5, 0.9]),
)
def test_equals_a_plain_search(seed, samples, late, persons, k, most, cosine, floor):
    random = np.random.default_rng(seed)
    # Near a few centres, and some rows twice, so that scores are close or equal.
    row_ND = random.standard_normal((4, 6))[random.integers(0, 4, samples + late)]
    row_ND = row_ND + 10.0 ** random.uniform(-6, 0) * random.standard_normal(row_ND.shape)
    row_ND = row_ND[random.integers(0, len(row_ND), len(row_ND))]
    if cosine:
        row_ND /= np.linalg.norm(row_ND, axis=1, keepdims=True)
    row_ND = row_ND.astype(np.float32)
    sample_N = np.arange(1, len(row_ND) + 1)
    # The first person has most of the samples.
    person_N = np.maximum(0, random.integers(-2 * persons, persons, len(row_ND))) + 7
    parts = [
        SampleRows(*(column[part] for column in (sample_N, person_N, row_ND)))
        for part in (slice(0, samples), slice(samples, None))
    ]
    probe_PD = random.standard_normal((3, 6)).astype(np.float32)
    view = IndexSnapshot(Rows(parts[0]), parts[1], cosine=cosine, engine=open_engine("faiss"))
    k = min(k, len(set(person_N.tolist())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "MAX_NEAREST_SAMPLES", most)
        patch.setattr(backend, "SCORE_BLOCK_ROWS", 16)
        candidates, is_exact = rank_people(
            probe_PD, k, view.nearest, samples=view.count, floor=floor, exhaustive=view.exhaustive_search
        )
    assert is_exact
    q, g = probe_PD.astype(np.float64), row_ND.astype(np.float64)
    if cosine:
        q, g = (item / np.linalg.norm(item, axis=1, keepdims=True) for item in (q, g))
    for score_N, item in zip(q @ g.T, candidates, strict=True):
        best = sorted((score_N[person_N == person].max() for person in set(person_N.tolist())), reverse=True)
        # Candidates below the floor may be missing, but never the best one.
        found_K = item.score_PT[0]
        assert max(1, sum(score >= floor + 1e-9 for score in best[:k])) <= len(found_K) <= k
        assert floor > -np.inf or len(found_K) == k
        np.testing.assert_allclose(found_K, best[: len(found_K)], atol=1e-9)
        assert len(set(item.person_PT[0].tolist())) == len(found_K)
        for score, sample, person in zip(*(column[0] for column in item), strict=True):
            assert person_N[sample - 1] == person
            assert score == pytest.approx(score_N[sample - 1], abs=1e-9)


def test_without_a_way_through_a_crowd_the_answer_is_not_sure(monkeypatch):
    monkeypatch.setattr(backend, "MAX_NEAREST_SAMPLES", 4)
    rows = SampleRows(np.arange(1, 11), np.array([1] * 9 + [2]), np.ones((10, 3), np.float32))
    view = IndexSnapshot(
        Rows(rows), SampleRows(*(column[:0] for column in rows)), cosine=True, engine=open_engine("faiss")
    )
    probe_PD = np.ones((1, 3), np.float32)
    candidates, is_exact = rank_people(probe_PD, 2, view.nearest, samples=10)
    assert not is_exact
    assert candidates[0].person_PT.tolist() == [[1]]
