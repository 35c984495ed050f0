"""`facelt ijb` and `facelt tinyface` on the command line: models on made-up images, features, one-line errors."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from facelt.alignment.align import similarity_transform
from facelt.inference.model import load_model
from facelt.store.store import EmbeddingStore
from tests.benchmark_files import IjbFiles, TinyfaceFiles


@pytest.fixture
def files(tmp_path):
    return IjbFiles(tmp_path / "ijbc")


@pytest.fixture
def tinyface(tmp_path):
    return TinyfaceFiles(tmp_path / "tinyface")


def test_a_model_on_ijb_aligned_by_the_listed_landmarks(cli, files, finished_run, tmp_path):
    files.draw(112)
    words = ("ijb", files.root, "--checkpoint", finished_run, "--out", tmp_path / "out", "--workers", 0)
    code, out, error = cli(*words, "--json", "--dtype", "float32")
    assert code == 0, error
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert error.splitlines()[-1] == f"written: {tmp_path / 'out/report.json'}"
    assert report["schema"] == "facelt.ijb/1"
    assert report["source"]["kind"] == "direct"
    assert report["source"]["flip_averaged"] is True
    assert report["run"]["settings"]["detector_score"] is True
    inputs = [item["path"].rpartition("/")[2] for item in report["run"]["inputs"]]
    assert inputs[:2] == ["model.safetensors", "card.json"]
    assert inputs[-6:] == [path.name for path in _lists(files)]
    store = EmbeddingStore.open(tmp_path / "out/embeddings/store")
    assert store.keys == [row[0] for row in files.rows]
    assert store.meta["preprocessing"]["alignment"] == {"detector": "listed landmarks", "template": "arcface"}
    image_HW3 = cv2.imread(str(files.root / "loose_crop" / store.keys[5]))[:, :, ::-1]
    numbers = files.path("name_5pts_score.txt").read_text().splitlines()[5].split()[1:11]
    matrix_23 = similarity_transform(np.array(numbers, dtype=float).reshape(5, 2), 32)
    crop = cv2.warpAffine(image_HW3, matrix_23, (32, 32))
    model = load_model(finished_run, torch.device("cpu"))
    with torch.no_grad():
        wanted = model.method.embed(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 127.5 - 1).by_kind["direct"]
    np.testing.assert_allclose(store.embedding("direct")[5], wanted[0].numpy(), atol=1e-4)
    # A finished report is replaced on demand only, and its store is used again by --embeddings.
    before = (tmp_path / "out/report.json").read_bytes()
    code, _, error = cli(*words, "--dtype", "float32")
    assert (code, "exists already" in error) == (1, True)
    assert (tmp_path / "out/report.json").read_bytes() == before
    code, out, error = cli(*words, "--dtype", "float32", "--overwrite")
    assert code == 0, error
    assert max(map(len, out.splitlines()[:-1])) <= 80
    again = (
        "ijb",
        files.root,
        "--embeddings",
        tmp_path / "out/embeddings/store",
        "--out",
        tmp_path / "again",
        "--json",
    )
    code, out, _ = cli(*again)
    assert (code, json.loads(out)["verification"]) == (0, report["verification"])
    code, out, _ = cli(*again, "--out", tmp_path / "unweighted", "--no-detector-score")
    assert json.loads(out)["verification"] != report["verification"]
    assert {path.name for path in (tmp_path / "again/tables").iterdir()} == {
        *("verification.csv", "ranks.csv", "open_set.csv")
    }


def _lists(files: IjbFiles):
    one_to_many = [files.path(f"1N_{name}.csv") for name in ("gallery_G1", "gallery_G2", "probe_mixed")]
    return [*map(files.path, ("name_5pts_score.txt", "face_tid_mid.txt", "template_pair_label.txt")), *one_to_many]


def test_images_that_are_missing_or_damaged_are_named(refused, files, finished_run, tmp_path):
    words = ("ijb", files.root, "--checkpoint", finished_run, "--out", tmp_path / "out", "--workers", 0)
    message = refused(*words)
    assert "cannot be read (No such file or directory)" in message
    assert "none of the 16 images that were tried can be used" in message
    files.draw()
    name = files.rows[7][0]
    (files.root / "loose_crop" / name).unlink()
    message = refused(*words)
    assert f"1 images cannot be used, the protocol allows 0: {name}: cannot be read (No such file" in message
    assert not (tmp_path / "out/report.json").exists()
    # The lists are compared before the model is loaded.
    files.path("template_pair_label.txt").write_text("1 2 1\n")
    assert "line 1: the template 1 has no image in" in refused(*words)


def test_a_model_on_tinyface(cli, refused, tinyface, finished_run, tmp_path):
    tinyface.draw()
    words = ("tinyface", tinyface.folder.parent, "--checkpoint", finished_run, "--workers", 0)
    code, out, error = cli(*words, "--out", tmp_path / "out", "--json")
    assert code == 0, error
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert [rate["rank"] for rate in report["ranks"]] == [1, 5, 10, 20]
    store = EmbeddingStore.open(tmp_path / "out/embeddings/store")
    assert store.keys[-70:] == [f"Gallery_Distractor/{number:03}.jpg" for number in range(70)]
    assert store.identities[0] == str(tinyface.probe_ids[0])
    code, out, _ = cli("tinyface", tinyface.folder, "--embeddings", store.path, "--out", tmp_path / "again")
    assert code == 0
    assert "TinyFace, " in out
    # Images of another size are resized only on request, wherever they are.
    large = tmp_path / "aligned"
    for path in tinyface.folder.rglob("*.jpg"):
        target = large / path.relative_to(tinyface.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.full((20, 16, 3), 99, np.uint8))
    words = (*words, "--images", large, "--out", tmp_path / "large")
    message = refused(*words)
    assert (
        "20 x 16 pixels (height x width), expected 32 x 32; align the images, or resize them with --resize" in message
    )
    code, _, error = cli(*words, "--resize")
    assert code == 0, error
    assert EmbeddingStore.open(tmp_path / "large/embeddings/store").meta["preprocessing"]["resized"] is True


def test_options_that_exclude_each_other(refused, files, tinyface, finished_run, tmp_path):
    np.save(tmp_path / "x.npy", files.feature_ND)
    for command, folder in (("ijb", files.root), ("tinyface", tinyface.folder)):
        words = (command, folder, "--out", tmp_path / "out")
        both = ("--checkpoint", finished_run, "--embeddings", tmp_path / "x.npy")
        for sources in ((), both):
            assert "give either a model with --checkpoint or" in refused(*words, *sources)
        array = (*words, "--embeddings", tmp_path / "x.npy")
        assert "--array: only applies to a .npz file" in refused(*array, "--array", "embs")
        assert "--kind: only applies to a model or a store" in refused(*array, "--kind", "meta")
    assert "--images, --resize: only apply with --checkpoint" in refused(*array, "--resize")
    assert not (tmp_path / "out").exists()


def test_features_need_no_torch(files, tinyface, tmp_path):
    np.save(tmp_path / "ijb.npy", files.feature_ND)
    np.save(tmp_path / "tinyface.npy", tinyface.feature_ND)
    program = "import sys; sys.modules['torch'] = None; from facelt.cli.main import main; main()"
    for command, folder in (("ijb", files.root), ("tinyface", tinyface.folder)):
        words = [command, folder, "--embeddings", tmp_path / f"{command}.npy", "--out", tmp_path / "reports" / command]
        result = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(f"written: {tmp_path / 'reports' / command / 'report.json'}\n")
