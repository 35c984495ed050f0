"""Stores made from arrays: values, names and attributes, and one-line errors before anything is written.

N rows, D values.
"""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.store import make
from facelt.store.make import make_store, read_row_names
from facelt.store.store import EmbeddingStore

ROWS = "Name,key,gender\nAnna Lee,a/1.jpg,female\nBob,b/2.jpg,male\n\nAnna Lee,a/3.jpg,female\n"


@pytest.fixture
def files(tmp_path):
    """files(value_ND) -> paths of a .npy file of these rows, of a table of three rows and of the store to make."""

    def write(value_ND):
        np.save(tmp_path / "rows.npy", value_ND)
        (tmp_path / "rows.csv").write_text(ROWS)
        return {"direct": tmp_path / "rows.npy"}, tmp_path / "rows.csv", tmp_path / "store"

    return write


def unit_rows(rows=3):
    value_ND = np.random.default_rng(1).normal(size=(rows, 4))
    return value_ND / np.linalg.norm(value_ND, axis=1, keepdims=True)


def test_a_store_holds_the_rows_with_their_names(files, monkeypatch, cli):
    monkeypatch.setattr(make, "_BLOCK_ROWS", 2)
    value_ND = unit_rows()
    arrays, items, out = files(value_ND)
    np.savez(items.with_name("meta.npz"), meta=0.3 * value_ND, other=np.ones(2))
    words = (arrays["direct"], f"meta={items.with_name('meta.npz')}", "--items", items, "--out", out)
    code, printed, error = cli("store", "make", *words, "--dtype", "float32", "--model", "toy")
    assert (code, printed) == (0, f"3 embeddings (direct, meta): {out}\n"), error
    store = EmbeddingStore.open(out)
    np.testing.assert_allclose(store.embedding("direct"), value_ND, rtol=1e-6)
    np.testing.assert_allclose(store.embedding("meta"), 0.3 * value_ND, rtol=1e-6)
    assert store.keys == ["a/1.jpg", "b/2.jpg", "a/3.jpg"]
    assert store.identities == ["Anna Lee", "Bob", "Anna Lee"]
    assert store.attributes == {"gender": ["female", "male", "female"]}
    assert store.meta["model"] == {"name": "toy"}
    code, _, error = cli("store", "make", *words)
    assert (code, "exists already" in error) == (1, True)
    assert cli("store", "make", *words, "--model", "another", "--overwrite")[0] == 0
    assert EmbeddingStore.open(out).meta["model"] == {"name": "another"}


def test_rows_are_scaled_to_length_one_on_demand_only(files):
    arrays, items, out = files(3 * unit_rows())
    with pytest.raises(UserError, match=r"rows\.npy: 'a/1\.jpg' has length 3, .* kind direct have length one; scale"):
        make_store(arrays, items, out)
    assert not list(out.parent.glob("store*"))
    make_store(arrays, items, out, normalize=True, dtype="float32")
    np.testing.assert_allclose(EmbeddingStore.open(out).embedding("direct"), unit_rows(), rtol=1e-6)


@pytest.mark.parametrize(("value", "what"), [(np.nan, "a value that is not finite"), (0.0, "has length 0")])
def test_rows_without_a_direction_are_refused_by_name(files, value, what):
    value_ND = unit_rows()
    value_ND[1] = value
    arrays, items, out = files(value_ND)
    with pytest.raises(UserError, match=rf"rows\.npy: 'b/2\.jpg' .*{what}"):
        make_store(arrays, items, out, normalize=True)
    assert not list(out.parent.glob("store*"))


def test_another_number_of_rows_is_refused(files):
    with pytest.raises(UserError, match=r"rows\.npy: has 4 rows, the list of its rows has 3"):
        make_store(*files(unit_rows(4)))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("key,who\na,b\n", "has no column identity or name or label for the identities; its columns are key, who"),
        ("identity,key\nAnna,a\n ,b\n", "line 3, column 'identity': an identity is empty"),
        ("identity,key\nAnna,a\nBob,a\n", "the key 'a' occurs more than once"),
        ("identity;key\nAnna;a\n", "separate columns with commas"),
    ],
)
def test_a_mistake_in_the_list_of_rows_is_named(tmp_path, text, what):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=rf"rows\.csv: .*{what}"):
        read_row_names(tmp_path / "rows.csv")


def test_rows_without_keys_are_numbered_and_lists_name_identities_by_folder(tmp_path):
    (tmp_path / "rows.csv").write_text("label,age\n3,20\n4,30\n")
    names = read_row_names(tmp_path / "rows.csv")
    assert (names.keys, names.identities, names.columns) == (["row 0", "row 1"], ["3", "4"], {"age": ["20", "30"]})
    (tmp_path / "rows.txt").write_text("x/Anna/1.jpg\nBob/2.jpg\n")
    names = read_row_names(tmp_path / "rows.txt")
    assert (names.keys, names.identities) == (["x/Anna/1.jpg", "Bob/2.jpg"], ["Anna", "Bob"])
