"""Counts of scores above a threshold, against float64: at the threshold itself and over many blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.search import engine, exact
from facelt.search.exact import BadRow
from facelt.search.top_k import count_above


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(-1, 1), st.integers(2, 40), st.integers(1, 60))
def test_equals_a_plain_count(seed, threshold, block_values, scores):
    random = np.random.default_rng(seed)
    query_PD = random.standard_normal((6, 5)) * random.uniform(0.1, 9, (6, 1))
    database_GD = (random.standard_normal((37, 5)) * random.uniform(0.1, 9, (37, 1))).astype(np.float32)
    query_PD = query_PD.astype(np.float32)
    q, g = query_PD.astype(np.float64), database_GD.astype(np.float64)
    cosine_PG = (q @ g.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "MAX_BLOCK_VALUES", block_values)
        patch.setattr(engine, "MAX_TILE_SCORES", scores)
        found_P = count_above(query_PD, database_GD, threshold)
    np.testing.assert_array_equal(found_P, (cosine_PG > threshold).sum(axis=1))


def test_strictly_above_by_hand():
    # Cosines with (1, 0): 0.6 exactly, 0.8, 1, -1.
    database_GD = np.array([[3, 4], [4, 3], [7, 0], [-2, 0]], dtype=np.float16)
    query_PD = np.array([[5, 0]], dtype=np.float32)
    assert count_above(query_PD, database_GD, 0.6).tolist() == [2]
    assert count_above(query_PD, database_GD, np.nextafter(0.6, 0)).tolist() == [3]
    assert count_above(query_PD, database_GD, 1.0).tolist() == [0]
    assert count_above(query_PD, database_GD, -1.5).tolist() == [4]


def test_a_zero_row_is_named():
    with pytest.raises(BadRow, match="row 1 of the database has length zero"):
        count_above(np.eye(2), np.array([[1, 0], [0, 0]]), 0.5)
    with pytest.raises(BadRow, match="row 0 of the query has length zero"):
        count_above(np.zeros((1, 2)), np.eye(2), 0.5)


def test_an_empty_database_counts_nothing():
    assert count_above(np.eye(2), np.zeros((0, 2)), 0.5).tolist() == [0, 0]
