"""Exact top-k against a plain sort in float64, with ties, nested galleries and invalid rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.search import exact
from facelt.search.exact import BadRow, similarities
from facelt.search.top_k import top_k


def plain_top_k(query_PD, database_GD, k, size):
    """Returns the top k by Python's sort of (-score, position); integer rows give integer scores."""
    scores, ids = [], []
    for query_D in query_PD.astype(np.float64):
        row = [(-float(np.dot(query_D, gallery_D)), position) for position, gallery_D in enumerate(database_GD[:size])]
        row = sorted(row)[:k] + [(np.inf, -1)] * max(0, k - size)
        scores.append([-score for score, _ in row])
        ids.append([position for _, position in row])
    return np.array(scores), np.array(ids)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 7),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(8, 200),
)
def test_equals_a_plain_sort_with_many_ties(seed, probes, total, k, high, block_values):
    random = np.random.default_rng(seed)
    # Small integers: float32 is exact and most scores are shared.
    query_PD = random.integers(-high, high + 1, (probes, 4)).astype(np.float32)
    database_GD = random.integers(-high, high + 1, (total, 4)).astype(np.float16)
    prefixes = random.integers(0, total + 1, 3).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "MAX_BLOCK_VALUES", block_values)
        score_SPK, id_SPK = top_k(query_PD, database_GD, k, prefixes)
    assert score_SPK.shape == id_SPK.shape == (3, probes, k)
    for size, score_PK, id_PK in zip(prefixes, score_SPK, id_SPK, strict=True):
        plain_score, plain_id = plain_top_k(query_PD, database_GD.astype(np.float64), k, size)
        np.testing.assert_array_equal(score_PK, plain_score)
        np.testing.assert_array_equal(id_PK, plain_id)


def test_real_values_in_blocks(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    query_PD = random.standard_normal((9, 32)).astype(np.float32)
    np.save(tmp_path / "g.npy", random.standard_normal((3000, 32)).astype(np.float32))
    database_GD = np.load(tmp_path / "g.npy", mmap_mode="r")
    monkeypatch.setattr(exact, "MAX_BLOCK_VALUES", 32 * 700)
    seen = []
    score_SPK, id_SPK = top_k(query_PD, database_GD, 20, [10, 100, 3000], progress=lambda *report: seen.append(report))
    assert seen == [("searching", done, 3000) for done in (10, 100, 800, 1500, 2200, 2900, 3000)]
    for size, score_PK, id_PK in zip([10, 100, 3000], score_SPK, id_SPK, strict=True):
        plain_score, plain_id = plain_top_k(query_PD, np.asarray(database_GD), 20, size)
        np.testing.assert_array_equal(id_PK, plain_id)
        np.testing.assert_allclose(score_PK, plain_score, rtol=1e-12)


def test_cosines_of_rows_of_any_length(monkeypatch):
    random = np.random.default_rng(2)
    query_PD = random.standard_normal((9, 32)).astype(np.float32) * random.uniform(0.1, 9, (9, 1)).astype(np.float32)
    database_GD = (random.standard_normal((900, 32)) * random.uniform(0.1, 9, (900, 1))).astype(np.float16)
    monkeypatch.setattr(exact, "MAX_BLOCK_VALUES", 32 * 200)
    score_SPK, id_SPK = top_k(query_PD, database_GD, 20, cosine=True)
    unit_PD, unit_GD = query_PD.astype(np.float64), database_GD.astype(np.float64)
    unit_PD /= np.linalg.norm(unit_PD, axis=1, keepdims=True)
    unit_GD /= np.linalg.norm(unit_GD, axis=1, keepdims=True)
    plain_score, plain_id = plain_top_k(unit_PD, unit_GD, 20, 900)
    np.testing.assert_array_equal(id_SPK[0], plain_id)
    np.testing.assert_allclose(score_SPK[0], plain_score, rtol=1e-12)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_collapsed_model_ties_everywhere_in_order_of_position(monkeypatch, cosine):
    monkeypatch.setattr(exact, "MAX_BLOCK_VALUES", 16 * 500)
    row_D = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    score_SPK, id_SPK = top_k(np.tile(row_D, (5, 1)), np.tile(row_D, (1300, 1)), 6, cosine=cosine)
    np.testing.assert_array_equal(id_SPK[0], np.tile(np.arange(6), (5, 1)))
    assert len(np.unique(score_SPK)) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 600), st.integers(1, 40))
def test_equal_rows_score_equally_wherever_they_are(seed, dimension, pairs):
    random = np.random.default_rng(seed)
    a_D, b_D = random.standard_normal((2, dimension)).astype(np.float32)
    left_ND, right_ND = np.tile(a_D, (7, 1)), np.tile(b_D, (11, 1)).astype(np.float32)
    left_M, right_M = random.integers(0, 7, pairs), random.integers(0, 11, pairs)
    a, b = a_D.astype(np.float64), b_D.astype(np.float64)
    for cosine, expected in ((False, a @ b), (True, a @ b / np.linalg.norm(a) / np.linalg.norm(b))):
        score_M = similarities(left_ND, left_M, right_ND, right_M, cosine=cosine)
        turned_M = similarities(right_ND, right_M[:1], left_ND, left_M[:1], cosine=cosine)
        assert set(score_M) == set(turned_M)
        assert score_M[0] == pytest.approx(float(expected), abs=1e-9)


def test_rows_that_cannot_be_scored_are_named():
    query_PD, database_GD = np.eye(3, dtype=np.float32), np.tile(np.eye(3), (4, 1))
    broken = database_GD.copy()
    broken[7, 1] = np.nan
    with pytest.raises(BadRow, match="row 7 of the database holds a value that is not finite") as caught:
        top_k(query_PD, broken, 2)
    assert (caught.value.side, caught.value.row) == ("database", 7)
    with pytest.raises(BadRow, match="row 1 of the query"):
        top_k(np.array([[0, 1, 0], [0, np.inf, 0]]), database_GD, 2)
    with pytest.raises(BadRow, match="row 11 of the database has length zero"):
        top_k(query_PD, np.vstack([database_GD[:11], 0 * database_GD[:1]]), 2, cosine=True)
    with pytest.raises(UserError, match="one dimension"):
        top_k(query_PD, database_GD[:, :2], 2)
    with pytest.raises(ValueError, match="prefixes"):
        top_k(query_PD, database_GD, 2, [13])


def test_a_bad_row_beyond_the_largest_prefix_is_not_read():
    database_GD = np.vstack([np.eye(3), np.full((1, 3), np.nan)])
    assert top_k(np.eye(3), database_GD, 1, [3])[1][0].ravel().tolist() == [0, 1, 2]


def test_float16_blocks_have_the_values_and_errors_of_a_plain_conversion():
    # Every float16: normal, subnormal, zero, and 2 * 1024 that are not finite.
    value_N = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite_ND = value_N[np.isfinite(value_N)].reshape(-1, 16)
    block = exact.prepare_block(finite_ND, "database", cosine=False)
    np.testing.assert_array_equal(block.row_BD.view(np.uint32), finite_ND.astype(np.float32).view(np.uint32))
    assert block.max_norm == pytest.approx(np.linalg.norm(finite_ND.astype(np.float64), axis=1).max())
    for value in value_N[~np.isfinite(value_N)][::31]:
        broken_ND = finite_ND[:9].copy()
        broken_ND[5, 3] = value
        with pytest.raises(BadRow, match="row 105 of the database holds a value that is not finite"):
            exact.prepare_block(broken_ND, "database", 100, cosine=False)


def test_scores_of_many_pairs_do_not_depend_on_chunks(monkeypatch):
    random = np.random.default_rng(6)
    left_ND, right_ND = (random.standard_normal((rows, 24)).astype(np.float32) for rows in (9, 50))
    left_M, right_M = random.integers(0, 9, 5000), random.integers(0, 50, 5000)
    whole = similarities(left_ND, left_M, right_ND, right_M, cosine=True)
    rounded = exact.rounded_products(left_ND, left_M, right_ND, right_M)
    np.testing.assert_allclose(rounded, np.einsum("md,md->m", left_ND[left_M], right_ND[right_M]), rtol=1e-4, atol=1e-5)
    for values in (24, 24 * 7, 24 * 900):
        monkeypatch.setattr(exact, "CHUNK_VALUES", values)
        np.testing.assert_array_equal(similarities(left_ND, left_M, right_ND, right_M, cosine=True), whole)
        np.testing.assert_array_equal(exact.rounded_products(left_ND, left_M, right_ND, right_M), rounded)
