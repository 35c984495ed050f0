"""Model specification of a gallery, read from stores, arrays and tables; errors of mismatching embeddings."""

import os

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import read_labelled_embeddings
from facelt.store.store import StoreWriter
from tests.gallery.conftest import DIMENSION, some_samples

MODEL = {"weights_sha256": "ab" * 32, "stage": "oltr", "backbone": "resnet10"}


@pytest.fixture
def store(tmp_path):
    samples = some_samples(5, 2)
    row_ND = samples.embedding_ND / np.linalg.norm(samples.embedding_ND, axis=1, keepdims=True)
    writer = StoreWriter(
        tmp_path / "store", samples.keys, samples.people, {"direct": DIMENSION, "meta": DIMENSION}, {"model": MODEL},
        attributes={"sharpness": ["1", "2", "", "4", "5"]}, reachability=True,
    )  # fmt: skip
    writer.write(0, {"direct": row_ND, "meta": row_ND / 2}, np.arange(5, dtype=np.float32))
    return writer.finish()


def test_a_store_knows_its_model(store, model_spec):
    embedded = read_labelled_embeddings(store, "direct")
    assert embedded.model_spec == model_spec
    samples = embedded.samples()
    assert samples.people == some_samples(5, 2).people
    assert samples.metadata[1:3] == [{"sharpness": "2"}, {}]
    assert samples.provenance[0] == {"store": str(store)}
    assert embedded.reachability_N.tolist() == [0, 1, 2, 3, 4]
    assert read_labelled_embeddings(store, "meta").model_spec == ModelSpec(
        "resnet10/oltr", "ab" * 32, "meta", DIMENSION
    )
    with pytest.raises(UserError, match="has no embeddings of kind 'meta_unit'"):
        read_labelled_embeddings(store, "meta_unit")


def test_a_store_without_model_metadata(tmp_path):
    writer = StoreWriter(tmp_path / "store", ["a"], ["b"], {"direct": 2}, {})
    writer.write(0, {"direct": np.array([[1.0, 0.0]])})
    with pytest.raises(UserError, match=r"does not name the weights.*model\.weights_sha256"):
        read_labelled_embeddings(writer.finish(), "direct")


def test_an_array_is_named_by_a_table(tmp_path):
    np.save(tmp_path / "rows.npy", np.eye(3, 4))
    table = tmp_path / "rows.csv"
    table.write_text('key,person,note\na,Zoë,"x, y"\nb,"=1+1",\nc,\'DROP,z\n', encoding="utf-8")
    embedded = read_labelled_embeddings(tmp_path / "rows.npy", "direct", table)
    assert embedded.people == ["Zoë", "=1+1", "'DROP"]
    assert embedded.samples().metadata == [{"note": "x, y"}, {}, {"note": "z"}]
    assert embedded.model_spec is None
    np.testing.assert_array_equal(embedded.embedding_ND, np.eye(3, 4))


def test_a_table_may_hold_the_embeddings(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("e1,key,e0,camera\n0.5,a,1e-3,left\n-1,b,2,right\n")
    embedded = read_labelled_embeddings(table, "direct")
    np.testing.assert_allclose(embedded.embedding_ND, [[1e-3, 0.5], [2, -1]])
    assert (embedded.people, embedded.attributes) == (["", ""], {"camera": ["left", "right"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a column key"),
        ("person,e0\na,1\n", "must have a column key"),
        ("key,key,e0\na,b,1\n", "no duplicate names"),
        ("key,e0\na,1,2\n", "row 2 has 3 values"),
        ("key,e0\na,1\nb\n", "row 3 has 1 values"),
        ("key,e0,e2\na,1,2\n", "consecutive columns"),
        ("key,person\na,b\n", "e0, e1"),
        ("key,e0\na,one\n", "column e0 holds a value that is not a number"),
        ('key,e0\n"a,1\n', "cannot be read as a table"),
        ("key,e0\n\udcff,1\n", "cannot be read as a table"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    table = tmp_path / "rows.csv"
    table.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_labelled_embeddings(table, "direct")


def test_bad_arrays(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("key,person\na,b\n")
    path = tmp_path / "rows.npy"
    with pytest.raises(UserError, match="pass --table"):
        read_labelled_embeddings(path, "direct")
    for values, message in (
        (np.ones(3), r"embeddings must be floats \[N,D\], not float64 \[3\]"),
        (np.ones((2, 3)), "has 1 rows, .* has 2"),
        (np.array([[object()]]), "holds Python objects"),
    ):
        np.save(path, values, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            read_labelled_embeddings(path, "direct", table)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled_embeddings(path, "direct", table)
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a regular file"):
        read_labelled_embeddings(path, "direct", table)
