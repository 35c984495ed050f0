"""Embedding stores compared with a plain computation: every kind, flip-averaged, resumed, unusable images left out."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from facelt.distributed.rendezvous import WorkerGroup
from facelt.errors import UserError
from facelt.inference.embed import embed_images
from facelt.inference.model import load_model
from facelt.inference.sources import open_image_source
from facelt.store.store import EmbeddingStore
from facelt.store.writer import StoreWriter
from recordio_tools.face_set import FaceRecord

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(finished_run):
    return load_model(finished_run, CPU)


def embed(model, source, out, **options) -> EmbeddingStore:
    settings = {"batch": 16, "workers": 0, "dtype": "float32", **options}
    return EmbeddingStore.open(embed_images(model, source, out, **settings))


@pytest.fixture(scope="module")
def store(model, tiny_faces, tmp_path_factory) -> EmbeddingStore:
    return embed(model, open_image_source(tiny_faces, model.config), tmp_path_factory.mktemp("store") / "faces")


def test_every_kind_is_the_plain_computation(store, model, tiny_faces):
    head, rows = model.method.head, []
    with FaceRecord(tiny_faces) as record, torch.no_grad():
        for key in record.image_keys.tolist():
            image = cv2.imdecode(np.frombuffer(record.read(key).payload, np.uint8), cv2.IMREAD_COLOR)
            rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).double()
            pixels = ((rgb - 127.5) / 127.5).float()
            both = model.method.network(torch.stack([pixels, pixels.flip(2)])).double()
            rows.append((both[0] + both[1]) / 2)
    feature_ND = torch.stack(rows)
    centroid_CD = head.memory.centroid_CD.detach().double()[:5]  # the sixth identity has no image
    distance_N = torch.cdist(feature_ND, centroid_CD).amin(1).clamp_min(1e-3)
    coefficient_NC = torch.softmax(
        feature_ND @ head.hallucinator.weight.double().T + head.hallucinator.bias.double(), dim=1
    )
    memory_ND = coefficient_NC @ head.memory.centroid_CD.detach().double()
    chosen_ND = torch.tanh(feature_ND @ head.selector.weight.double().T + head.selector.bias.double()) * memory_ND
    vector_ND = (10 / distance_N)[:, None] * (feature_ND + chosen_ND)
    length_N1 = vector_ND.norm(dim=1, keepdim=True)
    expected = {
        "direct": feature_ND / feature_ND.norm(dim=1, keepdim=True),
        "meta": vector_ND / (1 + length_N1),
        "meta_unit": vector_ND / length_N1,
    }
    assert store.kinds == tuple(expected)
    for kind, value in expected.items():
        assert np.abs(store.embedding(kind) - value.detach().numpy()).max() < 1e-4, kind
    reachability_N = (10 / distance_N).numpy()
    assert np.abs(store.reachability / reachability_N - 1).max() < 1e-3


def test_lengths_are_what_the_kinds_promise(store):
    for kind in ("direct", "meta_unit"):
        assert np.linalg.norm(store.embedding(kind), axis=1) == pytest.approx(1, abs=1e-5)
    assert (np.linalg.norm(store.embedding("meta"), axis=1) < 1).all()


def test_items_and_meta_describe_the_images_and_the_model(store, model, tiny_faces):
    with FaceRecord(tiny_faces) as record:
        assert store.keys == [str(key) for key in record.image_keys]
        assert store.identities == [str(label) for label in record.labels]
    assert store.meta["model"]["stage"] == "oltr"
    assert store.meta["model"]["data_fingerprint"] == model.card["data_fingerprint"]
    assert store.meta["preprocessing"]["flip_averaged"] is True


def test_an_interrupted_embedding_resumes_to_the_same_store(store, model, tiny_faces, tmp_path, monkeypatch):
    source = open_image_source(tiny_faces, model.config)
    original, seen = type(model.method).embed, iter(range(100))

    def broken(self, image_B3HW):
        if next(seen) == 2:
            raise KeyboardInterrupt
        return original(self, image_B3HW)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.method), "embed", broken)
        with pytest.raises(KeyboardInterrupt):
            embed(model, source, tmp_path / "faces")
    assert not (tmp_path / "faces").exists()
    resumed = embed(model, source, tmp_path / "faces")
    assert next(seen) == 3  # the first two batches were not embedded again
    for file in store.path.iterdir():
        assert (resumed.path / file.name).read_bytes() == file.read_bytes()


def test_a_write_that_fails_stops_the_embedding_and_is_made_again(store, model, tiny_faces, tmp_path, monkeypatch):
    source = open_image_source(tiny_faces, model.config)
    original, calls = StoreWriter.write, iter(range(100))

    def full(self, start, *arguments):
        if next(calls) == 1:
            raise UserError(f"{self.partial}: cannot be written (No space left on device)")
        original(self, start, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", full)
        with pytest.raises(UserError, match="No space left"):
            embed(model, source, tmp_path / "faces")
    assert next(calls) == 2  # no batch is written after the one that failed
    resumed = embed(model, source, tmp_path / "faces")
    for file in store.path.iterdir():
        assert (resumed.path / file.name).read_bytes() == file.read_bytes()


def test_a_finished_store_of_the_same_inputs_is_kept_and_any_other_is_refused(
    store, model, finished_run, tiny_faces, folder, monkeypatch
):
    before = {path: path.read_bytes() for path in store.path.iterdir()}
    monkeypatch.setattr(type(model.method), "embed", None)  # never called
    source = open_image_source(tiny_faces, model.config)
    assert embed(model, source, store.path, batch=5).keys == store.keys
    renamed = [*source.identities[:-1], "another"]
    others = {
        "images": (model, open_image_source(folder, model.config), {}),
        "fewer images": (model, replace(source, keys=source.keys[:-1], identities=source.identities[:-1]), {}),
        "identities": (model, replace(source, identities=renamed), {}),
        "attributes": (model, replace(source, attributes={"camera": ["left"] * 42}), {}),
        "model": (load_model(finished_run / "plain", CPU), source, {}),
        "dtype": (model, source, {"dtype": "float16"}),
        "left out": (model, source, {"left_out": {"x": "no face"}}),
    }
    for name, (other_model, other_source, options) in others.items():
        with pytest.raises(UserError, match="exists already"):
            embed(other_model, other_source, store.path, **options)
        assert {path: path.read_bytes() for path in store.path.iterdir()} == before, name
    monkeypatch.undo()
    assert embed(model, others["identities"][1], store.path, overwrite=True).identities[-1] == "another"


def test_a_finished_store_without_its_unusable_images_is_kept(model, damaged, tmp_path, monkeypatch):
    source, options = open_image_source(damaged, model.config), {"left_out": {"c/7.png": "no face"}}
    store = embed(model, source, tmp_path / "store", max_bad_images=4, **options)
    assert len(store) == 2
    monkeypatch.setattr(type(model.method), "embed", None)  # never called
    assert embed(model, source, tmp_path / "store", max_bad_images=4, **options).keys == store.keys
    with pytest.raises(UserError, match="exists already"):
        embed(model, source, tmp_path / "store", max_bad_images=3, **options)


def test_an_interrupted_command_says_how_to_continue_and_a_finished_one_that_nothing_is_left(
    cli, model, finished_run, tiny_faces, tmp_path, monkeypatch
):
    words = ("embed", "--checkpoint", finished_run, "--images", tiny_faces, "--workers", 0, "--batch", 16)
    original, calls = type(model.method).embed, iter(range(100))

    def interrupted(self, image_B3HW):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(self, image_B3HW)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.method), "embed", interrupted)
        code, out, error = cli(*words, "--out", tmp_path / "store")
    assert (code, out) == (130, "")
    assert error.splitlines()[-1] == "interrupted; the embeddings so far are kept, continue with the same command"
    result = f"42 images embedded (direct, meta, meta_unit): {tmp_path / 'store'}\n"
    assert cli(*words, "--out", tmp_path / "store")[:2] == (0, result)
    assert cli(*words, "--out", tmp_path / "store")[:2] == (0, f"nothing to do; {result}")
    assert cli(*words, "--out", tmp_path / "whole")[0] == 0
    for path in (tmp_path / "store").iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "whole"]


def test_a_damaged_image_stops_or_is_left_out_by_name(model, folder, tmp_path):
    source = open_image_source(folder, model.config)
    options = {"left_out": {"b/6.png": "no face"}}
    with pytest.raises(UserError, match=r"b/5\.png"):
        embed(model, source, tmp_path / "all", **options)
    assert not (tmp_path / "all").exists()
    # The store begun above is continued.
    store = embed(model, source, tmp_path / "all", max_bad_images=1, **options)
    assert store.keys == ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png"]
    assert list(store.meta["left_out"]) == ["b/5.png", "b/6.png"]
    small_batches = embed(model, source, tmp_path / "apart", batch=2, max_bad_images=1)
    assert np.abs(small_batches.embedding("direct") - store.embedding("direct")).max() < 1e-5


@pytest.fixture
def damaged(folder):
    """The folder with four of six images damaged: all of the first two, and one of the next two."""
    for name in ("a/0.png", "a/1.png", "b/3.png"):
        (folder / name).write_bytes(b"nothing")
    return folder


def test_a_store_without_unusable_images_is_that_of_the_usable_ones(model, damaged, tmp_path):
    store = embed(model, open_image_source(damaged, model.config), tmp_path / "store", batch=2, max_bad_images=4)
    (tmp_path / "usable.txt").write_text("a/2.png\nb/4.png\n")
    source = open_image_source(tmp_path / "usable.txt", model.config, root=damaged)
    expected = embed(model, source, tmp_path / "expected", batch=1, left_out=store.meta["left_out"])
    assert list(store.meta["left_out"]) == ["a/0.png", "a/1.png", "b/3.png", "b/5.png"]
    assert sorted(path.name for path in store.path.iterdir()) == sorted(path.name for path in expected.path.iterdir())
    for path in store.path.iterdir():
        assert path.read_bytes() == (expected.path / path.name).read_bytes(), path.name


def test_an_image_is_decoded_once_also_after_an_interruption(model, damaged, tmp_path, monkeypatch):
    source, decoded = open_image_source(damaged, model.config), []
    read_image, embed_method, calls = source.dataset.read_image, type(model.method).embed, iter(range(100))

    def recorded(index):
        decoded.append(index)
        return read_image(index)

    monkeypatch.setattr(source.dataset, "read_image", recorded, raising=False)

    def interrupted(self, image_B3HW):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return embed_method(self, image_B3HW)

    options = {"batch": 2, "max_bad_images": 4}
    with monkeypatch.context() as patch:
        patch.setattr(type(model.method), "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(model, source, tmp_path / "store", **options)
    assert decoded == [0, 1, 2, 3, 4, 5]
    del decoded[:]
    store = embed(model, source, tmp_path / "store", **options)
    assert decoded == [4, 5]
    whole = embed(model, source, tmp_path / "whole", **options)
    for path in store.path.iterdir():
        assert path.read_bytes() == (whole.path / path.name).read_bytes(), path.name


def test_too_many_unusable_images_and_only_such_are_refused(model, damaged, tmp_path):
    source = open_image_source(damaged, model.config)
    with pytest.raises(
        UserError, match=r"4 images cannot be used, --max-bad-images allows 3: a/0\.png: .*; b/5\.png: "
    ):
        embed(model, source, tmp_path / "store", max_bad_images=3)
    for name in ("a/2.png", "b/4.png"):
        (damaged / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the images can be used"):
        embed(model, source, tmp_path / "none", max_bad_images=6)


def test_each_process_counts_the_unusable_images_of_its_share(model, damaged, tmp_path, monkeypatch):
    """Those of the others may be recorded before it starts; the limit is applied to all of them at the end."""
    source, store, finish = open_image_source(damaged, model.config), torch.distributed.HashStore(), []
    monkeypatch.setattr(WorkerGroup, "finalize_on_leader", lambda self, action: finish.append(action))
    for rank in (0, 1):
        monkeypatch.setattr(WorkerGroup, "from_env", lambda rank=rank: WorkerGroup(rank, 2, store))
        options = {"batch": 2, "workers": 0, "dtype": "float32", "max_bad_images": 3}
        embed_images(model, source, tmp_path / "store", **options)
    with pytest.raises(UserError, match="4 images cannot be used, --max-bad-images allows 3"):
        finish[0]()
