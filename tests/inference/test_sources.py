"""Image sources: records, lists and folders, and photographs that are aligned on the way."""

import cv2
import numpy as np
import pytest
import torch

from facelt.alignment import detect as detect_module
from facelt.alignment.align import similarity_transform
from facelt.alignment.detect import DetectionOptions
from facelt.alignment.photographs import find_photographs, read_photograph
from facelt.errors import UserError
from facelt.inference import sources as sources_module
from facelt.inference.model import load_model
from facelt.inference.sources import open_image_source, open_photograph_source
from facelt.store.store import EmbeddingStore
from tests.alignment.drawing import DrawnFaces, expected_crop


@pytest.fixture(scope="module")
def model(finished_run):
    return load_model(finished_run, torch.device("cpu"))


def test_identities_and_attributes_come_from_the_table_of_the_record(model, tiny_faces, tmp_path):
    for file in tiny_faces.parent.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "identities.csv").write_text("label,name,gender,images\n0,Ann,female,14\n1,Bob,male,12\n")
    source = open_image_source(tmp_path / "train.rec", model.config)
    assert (source.identities[0], source.identities[14]) == ("Ann", "Bob")
    assert source.identities[26:28] == ["2", "2"]
    assert source.attributes == {"gender": ["female"] * 14 + ["male"] * 12 + [""] * 16}
    (tmp_path / "identities.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="needs the columns label and name"):
        open_image_source(tmp_path / "train.rec", model.config)


def test_a_folder_and_both_kinds_of_list_name_their_images(model, folder, tmp_path):
    paths = ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png"]
    source = open_image_source(folder, model.config)
    assert (source.keys, source.identities) == (paths, ["a"] * 3 + ["b"] * 3)
    (tmp_path / "plain.txt").write_text("b/3.png\na/0.png\n")
    source = open_image_source(tmp_path / "plain.txt", model.config, root=folder)
    assert (source.keys, source.identities) == (["b/3.png", "a/0.png"], ["b", "a"])
    (tmp_path / "labelled.txt").write_text("b/3.png 7\na/0.png -1\n")
    source = open_image_source(tmp_path / "labelled.txt", model.config, root=folder)
    assert (source.keys, source.identities) == (["b/3.png", "a/0.png"], ["7", "-1"])


def test_a_list_needs_a_root_and_a_manifest_a_record(model, folder, tmp_path):
    (tmp_path / "list.txt").write_text("a/0.png\n")
    with pytest.raises(UserError, match="a list needs --root"):
        open_image_source(tmp_path / "list.txt", model.config)
    with pytest.raises(UserError, match=r"only applies to \.rec files"):
        open_image_source(folder, model.config, manifest=tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="no such file or folder"):
        open_image_source(tmp_path / "absent.txt", model.config, root=folder)


def test_a_manifest_selects_and_relabels(model, tiny_faces, tmp_path):
    (tmp_path / "manifest.csv").write_text("key,label,new_label\n15,1,0\n1,0,1\n")
    source = open_image_source(tiny_faces, model.config, manifest=tmp_path / "manifest.csv")
    assert (source.keys, source.identities) == (["15", "1"], ["0", "1"])


@pytest.mark.parametrize("workers", [0, 1])
def test_embedding_aligns_on_the_way(cli, finished_run, drawn, photos, tmp_path, workers, monkeypatch):
    """Each embedding is that of the face cropped by hand at the model's image size, averaged with its mirror image."""
    words = ("--images", photos, "--align", drawn, "--faces", "all", "--dtype", "float32", "--out", tmp_path / "store")
    if workers:  # they would not know the drawn detector; the loader's do not need it
        original = detect_module.detect_all
        monkeypatch.setattr("facelt.inference.sources.detect_all", lambda items, terms, _: original(items, terms))
    code, out, error = cli("embed", "--checkpoint", finished_run, *words, "--workers", workers)
    assert (code, out.partition(" (")[0]) == (0, "4 images embedded, 2 left out")
    assert error.splitlines()[1].startswith("left out Bob/1.png: no face with")
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.keys == ["Ann/1.png#1", "Ann/2.png#1", "Ann/2.png#2", "Cid/2.png#1"]
    assert store.identities == ["Ann", "Ann", "Ann", "Cid"]
    assert store.attributes["source"] == ["Ann/1.png", "Ann/2.png", "Ann/2.png", "Cid/2.png"]
    assert list(store.attributes) == ["source", "score", "eye_distance", "sharpness", "yaw", "pitch", "roll"]
    assert list(store.meta["left_out"]) == ["Bob/1.png", "Cid/1.png"]
    assert store.meta["preprocessing"]["alignment"] == {"detector": "drawn:squares", "template": "arcface"}
    model = load_model(finished_run, torch.device("cpu"))
    for row, (name, number) in enumerate((("Ann/1.png", 0), ("Ann/2.png", 1), ("Ann/2.png", 0), ("Cid/2.png", 0))):
        image_HW3 = cv2.imread(str(photos / name))[:, :, ::-1]
        (face,) = (face for face in DrawnFaces("x").detect(image_HW3) if face.score == 0.9 - 0.1 * number)
        crop = cv2.warpAffine(image_HW3, similarity_transform(face.landmark_52, 32), (32, 32))
        pixels_3HW = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            wanted = model.method.embed(pixels_3HW).by_kind["direct"][0].numpy()
        np.testing.assert_allclose(store.embedding("direct")[row], wanted, atol=1e-4)


def test_a_crowd_is_decoded_twice_not_once_a_face(drawn, photos, monkeypatch):
    decoded = []
    for module in (detect_module, sources_module):
        monkeypatch.setattr(module, "read_photograph", lambda *terms: decoded.append(terms) or read_photograph(*terms))
    source, _ = open_photograph_source(find_photographs(photos), DetectionOptions(drawn, all_faces=True), (112, 112), 0)
    decoded.clear()
    for index, (name, green) in enumerate((("Ann/1", 130), ("Ann/2", 150), ("Ann/2", 130), ("Cid/2", 130))):
        np.testing.assert_array_equal(source.dataset.read_image(index), expected_crop(photos / f"{name}.png", green))
    assert [path.relative_to(photos).as_posix() for path, _ in decoded] == ["Ann/1.png", "Ann/2.png", "Cid/2.png"]


def test_a_photograph_listed_twice_is_refused_before_detection(drawn, photos, tmp_path):
    (tmp_path / "list.txt").write_text("Ann/1.png\nCid/1.png\nAnn/1.png\n")
    with pytest.raises(UserError, match=r"the photograph Ann/1\.png is listed 2 times"):
        open_photograph_source(
            find_photographs(tmp_path / "list.txt", root=photos), DetectionOptions("absent:x"), (112, 112), 0
        )


def test_the_largest_face_goes_by_its_photographs_name(cli, finished_run, drawn, photos, tmp_path):
    words = ("--images", photos, "--align", drawn, "--workers", 0, "--out", tmp_path / "store")
    assert cli("embed", "--checkpoint", finished_run, *words)[0] == 0
    assert EmbeddingStore.open(tmp_path / "store").keys == ["Ann/1.png", "Ann/2.png", "Cid/2.png"]


def test_what_goes_with_records_only_is_refused_for_photographs(cli, finished_run, drawn, photos, tmp_path):
    words = ("--checkpoint", finished_run, "--align", drawn, "--out", tmp_path / "store")
    code, _, error = cli("embed", *words, "--images", photos, "--manifest", tmp_path / "manifest.csv")
    assert (code, "--align takes photographs" in error) == (1, True)
    (tmp_path / "train.rec").touch()
    code, _, error = cli("embed", *words, "--images", tmp_path / "train.rec")
    assert (code, "a .rec holds aligned faces" in error) == (1, True)
