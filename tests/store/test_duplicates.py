"""Duplicates: hashes and repeats against a plain look; equal rows of two sets against all pairs; the notes on them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.store import duplicates
from facelt.store.feature_tree import FeatureTree
from facelt.store.store import RowSubset
from tests.feature_files import write_feature

PATHS = Path("probes"), Path("distractors")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 9), st.sampled_from(["float16", "float32"]))
def test_scan_equals_a_plain_look(seed, rows, dimension, dtype):
    random = np.random.default_rng(seed)
    value_ND = random.integers(-1, 2, (rows + 1, dimension)).astype(dtype)
    value_ND[random.random((rows + 1, dimension)) < 0.05] = random.choice([np.nan, np.inf, -np.inf, -0.0])
    row_N = random.permutation(rows + 1)[:rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_SCAN_ROWS", 7)
        finite_N, nonzero_N, hash_N = duplicates.scan_rows(value_ND, row_N)
    chosen_ND = value_ND[row_N]
    np.testing.assert_array_equal(finite_N, np.isfinite(chosen_ND).all(axis=1))
    np.testing.assert_array_equal(nonzero_N, (chosen_ND != 0).any(axis=1))
    content = [row_D.tobytes() for row_D in chosen_ND]
    assert len(set(hash_N.tolist())) == len(set(content))
    first = {}
    plain = {row: first[key] for row, key in enumerate(content) if first.setdefault(key, row) != row}
    result = duplicates.find_repeats(hash_N, value_ND, row_N)
    finite = {row: second for row, second in plain.items() if finite_N[row]}
    assert {row: second for row, second in result.items() if finite_N[row]} == finite


def test_equal_hashes_alone_are_no_repeat():
    value_ND = np.array([[1.0], [2.0], [1.0]], np.float32)
    assert duplicates.find_repeats(np.zeros(3, np.uint64), value_ND, np.arange(3)) in ({}, {2: 0})
    assert duplicates.find_repeats(np.zeros(2, np.uint64), value_ND, np.arange(2)) == {}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 40),
    st.integers(0, 60),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
)
def test_equal_rows_of_two_sets_equal_a_comparison_of_all_pairs(seed, probes, rows, dtype, is_subset):
    random = np.random.default_rng(seed)
    query_PD = random.integers(-1, 2, (probes, 3)).astype(np.float32)
    value_ND = random.integers(-1, 2, (rows, 3)).astype(dtype)
    position_G = random.permutation(rows)
    value_GD = RowSubset(value_ND, position_G) if is_subset else value_ND
    _, _, hash_G = duplicates.scan_rows(value_GD, np.arange(rows))
    result = duplicates.find_equal_rows(query_PD, value_GD, hash_G)
    equal_PG = (query_PD[:, None] == value_GD[np.arange(rows)]).all(axis=2)
    assert result == {p: int(equal_PG[p].argmax()) for p in range(probes) if equal_PG[p].any()}


def test_equal_hashes_alone_are_no_duplicate():
    query_PD = np.array([[1.0], [2.0]], np.float32)
    value_GD = np.array([[3.0], [2.0]], np.float32)
    _, _, hash_P = duplicates.scan_rows(query_PD, np.arange(2))
    assert duplicates.find_equal_rows(query_PD, value_GD, hash_P) == {1: 1}


def test_rows_of_a_tree_and_of_another_type_are_compared(tmp_path):
    value_GD = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    images = [f"a/{number}.jpg" for number in range(5)]
    for image, row_D in zip(images, value_GD, strict=True):
        write_feature(tmp_path / f"{image}_x.bin", row_D)
    tree = FeatureTree(tmp_path, "x", images)
    _, _, hash_G = duplicates.scan_rows(tree, np.arange(5))
    assert duplicates.find_equal_rows(value_GD[[3, 1]], tree, hash_G) == {0: 3, 1: 1}
    # A float32 embedding and its float16 copy are of one image.
    exact_GD = value_GD.astype(np.float32) * np.float32(1.0001)
    _, _, hash_G = duplicates.scan_rows(exact_GD.astype(np.float16), np.arange(5))
    assert duplicates.find_equal_rows(exact_GD, exact_GD.astype(np.float16), hash_G) == {row: row for row in range(5)}


def test_duplicates_are_refused_beyond_those_on_a_noise_list():
    pairs = {"a/1.jpg": "x/9.jpg", "a/2.jpg": "x/8.jpg", "b/3.jpg": "x/9.jpg"}
    options = {"noise_keys": "--noises"}
    assert duplicates.duplicate_notes({}, (), PATHS, **options, allow_duplicates=False) == []
    with pytest.raises(UserError) as caught:
        duplicates.duplicate_notes(pairs, {"a/1.jpg"}, PATHS, **options, allow_duplicates=False)
    assert str(caught.value).startswith(
        "2 images of probes have the embedding of a distractor of distractors, bit for bit, such as 'a/2.jpg' and "
        "'x/8.jpg'. "
    )
    assert str(caught.value).endswith("noise list (--noises), or keep it with --allow-duplicates")
    (note,) = duplicates.duplicate_notes(pairs, {"a/1.jpg"}, PATHS, **options, allow_duplicates=True)
    assert note.startswith("3 images of probes")
    assert note.endswith("1 of them are on a noise list.")
    (note,) = duplicates.duplicate_notes(pairs, set(pairs), PATHS, **options, allow_duplicates=False)
    assert "3 of them are on a noise list" in note
