"""Model specification of a gallery, read from stores, arrays and tables; errors of mismatching embeddings."""

import json
import os

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.model_spec import ModelSpec, PreprocessingSpec
from facelt.gallery.samples import read_labelled_embeddings
from facelt.store.store import EmbeddingStore
from facelt.store.writer import StoreWriter
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


CARD = {"image_size": [112, 112], "channels": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def spec_of(tmp_path, preprocessing):
    writer = StoreWriter(
        tmp_path / "other", ["a"], ["b"], {"direct": 2}, {"model": MODEL, "preprocessing": preprocessing}
    )
    writer.write(0, {"direct": np.array([[1.0, 0.0]])})
    spec = ModelSpec.of_store(EmbeddingStore.open(writer.finish()), "direct")
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).preprocessing == spec.preprocessing
    return spec


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("image_size", [96, 112], ("image_size 96 x 112", "image_size 112 x 112")),
        ("channels", "BGR", ("channels BGR", "channels RGB")),
        ("mean", [0.4, 0.5, 0.5], ("mean (0.4, 0.5, 0.5)", "mean (0.5, 0.5, 0.5)")),
        ("std", [1, 1, 1], ("std (1, 1, 1)", "std (0.5, 0.5, 0.5)")),
        ("alignment", {"template": "ffhq"}, ("alignment ffhq", "alignment arcface")),
    ],
)
def test_another_preprocessing_is_refused_naming_both(tmp_path, name, value, texts):
    pinned = PreprocessingSpec.of_metadata({**CARD, "alignment": {"detector": "yunet", "template": "arcface"}})
    gallery_spec = ModelSpec("resnet10/oltr", "ab" * 32, "direct", 2, pinned)
    other = spec_of(tmp_path, {**CARD, name: value})
    with pytest.raises(UserError) as raised:
        gallery_spec.refuse_other(other, "probes")
    assert f"probes: its preprocessing has {texts[0]}, this gallery is pinned to {texts[1]};" in str(raised.value)


@pytest.mark.parametrize("preprocessing", [CARD, "none", {"size": 112}, {}, {**CARD, "flip_averaged": True}])
def test_a_preprocessing_that_is_equal_or_unknown_is_accepted(tmp_path, preprocessing):
    gallery_spec = ModelSpec("resnet10/oltr", "ab" * 32, "direct", 2, PreprocessingSpec.of_metadata(CARD))
    other = spec_of(tmp_path, preprocessing)
    gallery_spec.refuse_other(other, "probes")
    other.refuse_other(gallery_spec, "gallery")


def test_a_specification_without_preprocessing_is_one_of_an_earlier_version():
    values = ModelSpec("m", "ab" * 32, "direct", 2).to_dict()
    del values["preprocessing"]
    assert ModelSpec.from_dict(values).preprocessing.describe() == "not recorded"


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
