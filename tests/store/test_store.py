"""Embedding stores: round trip, resumed writing, and errors for damaged stores."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.store.store import EmbeddingStore
from facelt.store.writer import StoreWriter

KEYS = ["a/1.jpg", "a/2.jpg", "b/1.jpg", 'b/odd, "name"\n.jpg', "c/é.jpg"]
IDENTITIES = ["a", "a", "b", "b", "c"]
META = {"model": "0123abcd", "preprocessing": {"size": 112}}


def unit_rows(rows=5, dimension=4, seed=0):
    value_ND = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return value_ND / np.linalg.norm(value_ND, axis=1, keepdims=True)


def new_writer(path, **changes):
    arguments = {"keys": KEYS, "identities": IDENTITIES, "kinds": {"direct": 4, "meta": 3}, "meta": META}
    options = {"attributes": {"gender": ["f", "f", "m", "m", "f"]}, "reachability": True, "dtype": "float32"}
    return StoreWriter(path, **{**arguments, **options, **changes})


def pieces(start, stop):
    direct, meta = unit_rows(), 0.5 * unit_rows(dimension=3, seed=1)
    reachability = np.arange(5, dtype=np.float32)
    return {"direct": direct[start:stop], "meta": meta[start:stop]}, reachability[start:stop]


@pytest.fixture
def finished(tmp_path):
    writer = new_writer(tmp_path / "store")
    writer.write(0, *pieces(0, 5))
    return writer.finish()


def test_round_trip(finished):
    store = EmbeddingStore.open(finished)
    embeddings, reachability = pieces(0, 5)
    assert len(store) == 5
    assert store.kinds == ("direct", "meta")
    assert store.keys == KEYS
    assert store.identities == IDENTITIES
    assert store.attributes == {"gender": ["f", "f", "m", "m", "f"]}
    assert store.meta["model"] == "0123abcd"
    assert store.meta["kinds"] == {"direct": 4, "meta": 3}
    for kind, value_ND in embeddings.items():
        assert isinstance(store.embedding(kind), np.memmap)
        np.testing.assert_array_equal(store.embedding(kind), value_ND)
    np.testing.assert_array_equal(store.reachability, reachability)
    assert sorted(file.name for file in finished.parent.iterdir()) == ["store"]


def test_float16_without_reachability(tmp_path):
    value_ND = unit_rows()
    writer = StoreWriter(tmp_path / "s", KEYS, [1, 1, 2, 2, 3], {"meta_unit": 4}, {})
    writer.write(0, {"meta_unit": value_ND})
    store = EmbeddingStore.open(writer.finish())
    assert store.reachability is None
    assert store.identities == ["1", "1", "2", "2", "3"]
    np.testing.assert_array_equal(store.embedding("meta_unit"), value_ND.astype(np.float16))
    with pytest.raises(UserError, match="no embeddings of kind 'direct', only meta_unit"):
        store.embedding("direct")


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 5), max_size=4))
def test_any_interruptions_give_the_same_files(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("resume")
    done = 0
    for stop in [*sorted(cuts), 5]:
        writer = new_writer(folder / "store")  # a new process each time
        assert writer.rows_done == done
        writer.write(done, *pieces(done, stop))
        done = stop
    store = EmbeddingStore.open(writer.finish())
    np.testing.assert_array_equal(store.embedding("direct"), unit_rows())
    np.testing.assert_array_equal(store.reachability, np.arange(5))


def test_killed_inside_a_piece_forgets_only_that_piece(tmp_path, monkeypatch):
    writer = new_writer(tmp_path / "store")
    writer.write(0, *pieces(0, 2))
    monkeypatch.setattr(writer, "_save_progress", lambda rows: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.write(2, *pieces(2, 4))
    again = new_writer(tmp_path / "store")
    assert again.rows_done == 2
    again.write(2, *pieces(2, 5))
    np.testing.assert_array_equal(EmbeddingStore.open(again.finish()).embedding("direct"), unit_rows())


def test_killed_while_finishing(tmp_path):
    writer = new_writer(tmp_path / "store")
    writer.write(0, *pieces(0, 5))
    (writer.partial / "progress.json").unlink()
    again = new_writer(tmp_path / "store")
    assert again.rows_done == 5
    assert EmbeddingStore.open(again.finish()).keys == KEYS


def test_unfinished_store_of_another_model_is_refused(tmp_path):
    new_writer(tmp_path / "store").write(0, *pieces(0, 2))
    with pytest.raises(UserError, match=r"store\.partial: an unfinished store of other images, another model"):
        new_writer(tmp_path / "store", meta={"model": "ffff"})
    with pytest.raises(UserError, match="other images"):
        new_writer(tmp_path / "store", keys=[*KEYS[:4], "z.jpg"])
    with pytest.raises(UserError, match=r"is unfinished, run the embedding again"):
        EmbeddingStore.open(tmp_path / "store")


def test_shortened_partial_is_refused(tmp_path):
    writer = new_writer(tmp_path / "store")
    writer.write(0, *pieces(0, 4))
    (writer.partial / "meta.npy").write_bytes((writer.partial / "meta.npy").read_bytes()[:-5])
    with pytest.raises(UserError, match=r"meta\.npy: shorter than recorded"):
        new_writer(tmp_path / "store")


def test_writer_refuses_bad_rows(tmp_path):
    writer = new_writer(tmp_path / "store")
    embeddings, reachability = pieces(0, 2)
    broken = embeddings["meta"].copy()
    broken[1, 2] = np.nan
    with pytest.raises(UserError, match=r"meta of image 'a/2.jpg' is not finite"):
        writer.write(0, {**embeddings, "meta": broken}, reachability)
    with pytest.raises(UserError, match=r"direct of image 'a/1.jpg' has length 2"):
        writer.write(0, {**embeddings, "direct": 2 * embeddings["direct"]}, reachability)
    with pytest.raises(ValueError, match="in order"):
        writer.write(1, embeddings, reachability)
    with pytest.raises(ValueError, match="this store takes"):
        writer.write(0, embeddings)
    with pytest.raises(ValueError, match="shape"):
        writer.write(0, {**embeddings, "meta": embeddings["direct"]}, reachability)
    with pytest.raises(ValueError, match="more than the store"):
        writer.write(0, {kind: np.repeat(rows, 3, axis=0) for kind, rows in embeddings.items()}, np.zeros(6))
    with pytest.raises(ValueError, match="0 of 5 rows"):
        writer.finish()
    assert writer.rows_done == 0


def test_float16_overflow_is_refused(tmp_path):
    writer = StoreWriter(tmp_path / "s", ["a"], ["a"], {"meta": 2}, {})
    with pytest.raises(UserError, match="not finite in float16"):
        writer.write(0, {"meta": np.array([[1e6, 0.0]])})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"keys": ["a"] * 5}, UserError, "'a' occurs more than once"),
        ({"keys": ["a", "", "c", "d", "e"]}, UserError, "entry 1 has an empty key"),
        ({"identities": ["a"]}, ValueError, "'identity' has 1 values for 5 keys"),
        ({"attributes": {"key": KEYS}}, ValueError, "must not be named"),
        ({"kinds": {"../x": 3}}, ValueError, "kinds must map"),
        ({"meta": {"rows": 9}}, ValueError, "must not set"),
        ({"dtype": "float64"}, ValueError, "dtype must be"),
    ],
)
def test_writer_refuses_bad_plans(tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        new_writer(tmp_path / "store", **changes)
    assert list(tmp_path.iterdir()) == []


def test_existing_store_is_not_overwritten(finished):
    with pytest.raises(UserError, match="exists already"):
        new_writer(finished)


@pytest.mark.parametrize("left_out", [{}, {0: ("a/1.jpg", "unusable")}])
def test_a_store_is_replaced_whole_once_the_new_one_is_complete(finished, left_out):
    keys, before = ["x", "y"], {path.name: path.read_bytes() for path in finished.iterdir()}
    changes = {"kinds": {"direct": 4}, "attributes": {}, "reachability": False}
    writer = new_writer(finished, keys=keys, identities=keys, overwrite=True, **changes)
    writer.write(0, {"direct": unit_rows(2 - len(left_out))}, None, left_out)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    store = EmbeddingStore.open(writer.finish())
    assert (store.keys, store.kinds) == (keys[len(left_out) :], ("direct",))
    assert {path.name for path in finished.iterdir()} == {"direct.npy", "items.csv", "meta.json"}
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


def test_a_store_may_become_an_empty_folder_but_replaces_no_other_files(tmp_path):
    out = tmp_path / "store"
    out.mkdir()
    writer = new_writer(out)
    writer.write(0, *pieces(0, 5))
    assert EmbeddingStore.open(writer.finish()).keys == KEYS
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which this command does not write"):
        new_writer(out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def damage(folder, name, change):
    meta = json.loads((folder / "meta.json").read_text())
    if name == "meta.json":
        (folder / name).write_text(json.dumps({**meta, **change}))
    elif change is None:
        (folder / name).unlink()
    elif isinstance(change, np.ndarray):
        np.save(folder / name, change)
    else:
        (folder / name).write_bytes(change)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("meta.json", {"schema": "other/9"}, "schema is 'other/9'"),
        ("meta.json", {"rows": 4}, "lists 5 items, meta.json says 4"),
        ("meta.json", {"rows": "5"}, "rows is '5'"),
        ("meta.json", {"kinds": {"../../etc": 4}}, "it must map some of direct"),
        ("meta.json", {"kinds": {"direct": 0}}, "kinds.direct is 0"),
        ("meta.json", {"reachability": 1}, "reachability is 1"),
        ("items.csv", None, "items.csv: cannot be read"),
        ("items.csv", b"name,identity\n", "header must be key, identity"),
        ("items.csv", b"key,identity\na,1\nb\n", "line 3 has 1 fields"),
        ("items.csv", b"key,identity\na,1\na,1\n", "'a' occurs more than once"),
        ("items.csv", b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        ("direct.npy", None, "direct.npy: cannot be read"),
        ("direct.npy", b"\x93NUMPY\x01\x00", "direct.npy: truncated, or not a .npy file"),
        ("direct.npy", np.zeros((5, 7), np.float32), r"holds float32 \[5, 7\]"),
        ("direct.npy", np.zeros((5, 4), np.float64), r"holds float64 \[5, 4\]"),
        ("direct.npy", np.array([object()]), r"holds object \[1\], meta.json says float16 or float32"),
        ("reachability.npy", np.zeros(4, np.float32), r"holds float32 \[4\]"),
    ],
)
def test_damage_is_named(finished, name, change, match):
    damage(finished, name, change)
    with pytest.raises(UserError, match=match):
        EmbeddingStore.open(finished)


@pytest.mark.parametrize("name", ["meta.json", "items.csv", "direct.npy"])
def test_a_fifo_is_named(finished, name):
    (finished / name).unlink()
    os.mkfifo(finished / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(a named pipe, not a regular file\)"):
        EmbeddingStore.open(finished)


def test_truncated_array_is_named(finished):
    file = finished / "direct.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"direct\.npy: truncated"):
        EmbeddingStore.open(finished)


def test_missing_store(tmp_path):
    with pytest.raises(UserError, match="no such embedding store"):
        EmbeddingStore.open(tmp_path / "nothing")
