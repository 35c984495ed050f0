"""Images and output folders that cannot be used are refused before a model runs over an image."""

import os
import pickle

import cv2
import numpy as np
import pytest
import yaml

from facelt.inference import predict
from recordio_tools.writer import FaceRecordWriter


@pytest.fixture
def large(tmp_path):
    """A folder and a list of 20 images of another size than the model's."""
    names = [f"{number:02}.png" for number in range(20)]
    for name in names:
        path = tmp_path / "large" / "someone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((48, 40, 3), 99, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"someone/{name}\n" for name in names))
    return tmp_path / "large"


@pytest.fixture
def no_model_runs(monkeypatch):
    def refuse(*_):
        raise AssertionError("the model runs over images")

    monkeypatch.setattr(predict, "_forward", refuse)
    return monkeypatch


def test_images_of_another_size_are_refused_whatever_number_of_bad_images_is_allowed(
    refused, cli, finished_run, large, no_model_runs, tmp_path
):
    model = ("--checkpoint", finished_run)
    size = "the image is 48 x 40 pixels (height x width), expected 32 x 32; data.resize: true resizes it"
    embed = ("embed", *model, "--out", tmp_path / "store", "--max-bad-images", 1000)
    pairs = "".join(f"someone/{number:02}.png someone/{number + 1:02}.png {number % 2}\n" for number in range(0, 19))
    (tmp_path / "pairs.txt").write_text(pairs)
    payload = (large / "someone/00.png").read_bytes()
    (tmp_path / "large/single.png").write_bytes(payload)
    (tmp_path / "large.bin").write_bytes(pickle.dumps(([payload] * 20, [True, False] * 5), protocol=2))
    with FaceRecordWriter(tmp_path / "large.rec", image_size=(48, 40), num_identities=1) as writer:
        writer.write(0, payload)
    code, _, error = cli("gallery", "create", tmp_path / "gallery", *model)
    assert code == 0, error
    for words in (
        (*embed, "--images", large),
        (*embed, "--images", tmp_path / "list.txt", "--root", large),
        (*embed, "--images", tmp_path / "large/single.png"),
        (*embed, "--images", tmp_path / "large.rec"),
        ("verify", *model, "--set", tmp_path / "pairs.txt", "--root", large),
        ("verify", *model, "--set", tmp_path / "large.bin"),
        ("gallery", "enroll", tmp_path / "gallery", large, *model),
        ("evaluate", *model, "--open", "threshold", "--open-images", large, "--out", tmp_path / "report"),
        ("evaluate", *model, "--open-images", large, "--out", tmp_path / "report"),
    ):
        message = refused(*words)
        assert size in message, words
        assert "of the " in message, words
    assert not any((tmp_path / name).exists() for name in ("store", "store.partial", "report"))


def test_strangers_that_cannot_be_read_are_refused(refused, finished_run, large, no_model_runs, tmp_path):
    for path in large.rglob("*.png"):
        path.write_bytes(b"nothing")
    for options in ((), ("--open", "threshold")):
        message = refused("evaluate", "--checkpoint", finished_run, *options, "--open-images", large)
        assert message.startswith("error: someone/00.png: ")
        assert "none of the 16 images that were tried can be used" in message


def test_training_on_images_of_another_size_writes_no_folder(refused, recipe, no_model_runs, tmp_path):
    values = recipe(tmp_path / "run")
    values["data"] |= {"image_size": [64, 64], "max_bad_images": 1000}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    message = refused("train", "--config", tmp_path / "recipe.yaml")
    assert "train.rec:" in message
    assert "the image is 32 x 32 pixels (height x width), expected 64 x 64; data.resize: true resizes it" in message
    assert not (tmp_path / "run").exists()


def test_an_output_folder_with_content_is_refused(refused, finished_run, tiny_faces, no_model_runs, tmp_path):
    (tmp_path / "scores.csv").write_text("id1,id2,score,label\na,a,0.9,1\n")
    model, out = ("--checkpoint", finished_run), ("--out", tmp_path / "out")
    tables = ("--scores", tmp_path / "scores.csv", "--attributes", tmp_path / "scores.csv")
    (tmp_path / "out").mkdir()
    for words, name in (
        (("evaluate", *model, "--open-images", tiny_faces, *out), "report.html"),
        (("evaluate", *model, "--open", "threshold", "--open-images", tiny_faces, *out), "oscr.csv"),
        (("figures", "tsne", *model, "--split", "validation", *out), "tsne.svg"),
        (("audit", *tables, "--by", "x", "--threshold-at", "score=0.5", *out), "model_card.md"),
    ):
        (tmp_path / "out" / name).write_text("of an earlier run")
        assert "out: exists already and is not empty; " in refused(*words), words
        (tmp_path / "out/notes.txt").write_text("mine")
        for option in ((), ("--overwrite",)):
            assert "holds notes.txt, which this command does not write" in refused(*words, *option), words
        assert (tmp_path / "out" / name).read_text() == "of an earlier run"
        (tmp_path / "out" / name).unlink()
        (tmp_path / "out/notes.txt").unlink()
    assert "lies in the folder of --out" in refused(
        "evaluate", *model, "--open", "threshold", *out, "--per-class", tmp_path / "out/classes.csv"
    )


def test_an_output_folder_that_cannot_be_written_is_refused(
    refused, recipe, finished_run, tiny_faces, no_model_runs, tmp_path
):
    values = recipe(tmp_path / "closed/run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "scores.csv").write_text("id1,id2,score,label\na,a,0.9,1\n")
    (tmp_path / "photo.png").touch()
    (tmp_path / "closed").mkdir()
    access = os.access
    no_model_runs.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" and access(path, mode))
    model, out = ("--checkpoint", finished_run), ("--out", tmp_path / "closed/out")
    tables = ("--scores", tmp_path / "scores.csv", "--attributes", tmp_path / "scores.csv")
    for words in (
        ("train", "--config", tmp_path / "recipe.yaml"),
        ("embed", *model, "--images", tiny_faces, *out),
        ("evaluate", *model, "--open-images", tiny_faces, *out),
        ("evaluate", *model, "--per-class", tmp_path / "closed/classes.csv"),
        ("figures", "tsne", *model, "--split", "validation", *out),
        ("export", *model, "--format", "safetensors", "--out", tmp_path / "closed/x.safetensors"),
        ("align", tmp_path / "photo.png", "--detector", "yunet:absent.onnx", *out),
        ("audit", *tables, "--by", "x", "--threshold-at", "score=0.5", *out),
    ):
        assert f"no permission to write in {tmp_path / 'closed'}; choose another folder" in refused(*words), words
    assert list((tmp_path / "closed").iterdir()) == []
