"""Recipes of image lists, trained on a small tree of images and checked against a plain evaluation."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from facelt.cli.main import app
from facelt.config.registry import BACKBONES
from facelt.data.batch import SampleRequest
from facelt.inference.model import load_model
from tests.training.thin import THIN

# By the paper's convention one many-shot, one medium and two few-shot classes.
COUNTS = {"train": (101, 20, 19, 5), "validation": (2, 2, 2, 2), "test": (5, 4, 3, 3)}
LISTED = {
    "imagenet_lt": {"train": "train/n{}/{}.png", "validation": "train/n{}/{}.png", "test": "val/n{}/{}.png"},
    "places_lt": {"train": "data_256/a/s{}/{}.png", "validation": "data_256/a/s{}/{}.png", "test": "val_256/{}_{}.png"},
}
OPEN = ("open set/1.png", "open set/2.png")


@pytest.fixture(scope="module", autouse=True)
def _thin_backbone():
    """Keeps the real networks for these recipes."""


def make_tree(folder, patterns: dict[str, str]) -> dict[str, list[tuple[str, int]]]:
    """Writes images of 36 x 44 pixels, one colour per class, and the lists; returns the lists."""
    random = np.random.default_rng(0)
    colours_43 = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40]])
    lists, number = {}, 0
    for split, counts in COUNTS.items():
        lists[split] = []
        for label, count in enumerate(counts):
            for _ in range(count):
                number += 1
                path = patterns[split].format(label, number)
                pixels = (colours_43[label] + random.integers(-40, 41, (36, 44, 3))).clip(0, 255).astype(np.uint8)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / path), pixels[:, :, ::-1])
                lists[split].append((path, label))
        (folder / f"{split}.txt").write_text("".join(f"{path} {label}\n" for path, label in lists[split]))
    for path in OPEN:
        (folder / path).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / path), random.integers(0, 256, (36, 44, 3)).astype(np.uint8))
    (folder / "open.txt").write_text("".join(f"{path.rpartition('/')[2]} -1\n" for path in OPEN))
    return lists


def plain_accuracy(run, folder, listed) -> dict[str, float | None]:
    """Overall and by band, image by image. The shorter side is 36 already, so evaluation is the centre alone."""
    method = load_model(run, torch.device("cpu")).method
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    right: dict[int, list[bool]] = {label: [] for label in range(4)}
    with torch.no_grad():
        for path, label in listed:
            pixels = cv2.imread(str(folder / path))[2:34, 6:38, ::-1].astype(np.float64) / 255
            image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1).astype(np.float32))[None]
            right[label].append(int(method.logits(image).local_BC.argmax()) == label)
    by_class = [float(np.mean(right[label])) for label in range(4)]
    overall = float(np.mean([hit for hits in right.values() for hit in hits]))
    return {"overall": overall, "many": by_class[0], "medium": by_class[1], "few": (by_class[2] + by_class[3]) / 2}


@pytest.mark.parametrize("name", LISTED)
def test_a_recipe_of_lists_trains_and_evaluates(name, root, tmp_path):
    lists = make_tree(tmp_path, LISTED[name])
    weights = "null"
    if name == "places_lt":
        torch.manual_seed(7)
        weights = tmp_path / "weights.pth"
        torch.save(BACKBONES["resnet10"].build().state_dict(), weights)
    settings = {f"data.{split}": tmp_path / f"{split}.txt" for split in COUNTS}
    settings |= {"data.open_set": tmp_path / "open.txt", "data.open_set_root": tmp_path / "open set"}
    settings |= {"out": tmp_path / "run", "data.root": tmp_path, "data.num_classes": 4, "data.crop": 32}
    settings |= {"data.resize": 36, "data.workers": 0, "device": "cpu", "precision": "float32", "optim.batch": 16}
    # After so few steps batch norm's running statistics are far from the batches', and large rates diverge on that.
    settings["optim.lr"] = 0.02
    settings |= {"model.backbone": "resnet10", "model.pretrained": weights, "stages.0.epochs": 1, "stages.1.epochs": 1}
    arguments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, ["train", "--config", str(root / "configs" / f"{name}.yaml"), *arguments])
    assert done.exit_code == 0, done.exception
    run = tmp_path / "run"

    for stage in ("plain", "oltr"):
        evaluate = ["evaluate", "--checkpoint", str(run / stage), "--split", "test", "--workers", "0"]
        result = json.loads(CliRunner().invoke(app, [*evaluate, "--json"]).stdout)
        expected = plain_accuracy(run / stage, tmp_path, lists["test"])
        assert {key: result[key] for key in expected} == pytest.approx(expected)
        assert result["images"] == {"many": 5, "medium": 4, "few": 6}
        released = json.loads(CliRunner().invoke(app, [*evaluate, "--json", "--convention", "released"]).stdout)
        assert released["classes"] == {"many": 1, "medium": 0, "few": 3}
        table = CliRunner().invoke(app, evaluate).stdout
        assert f"{100 * expected['overall']:.2f}" in table

    opened = load_model(run, torch.device("cpu")).config.data.open(0).evaluation["open"]
    assert opened.labels.tolist() == [-1, -1]
    for number, path in enumerate(OPEN):
        plain = cv2.imread(str(tmp_path / path))[2:34, 6:38, ::-1]
        assert np.array_equal(opened.dataset[SampleRequest(number, 0)].image_HW3, plain)

    before, after = (load_file(run / stage / "model.safetensors") for stage in ("plain", "oltr"))
    same = torch.equal(before["network.backbone.conv1.weight"], after["network.backbone.conv1.weight"])
    assert same == (name == "places_lt")
    assert ("network.embedding.linear.weight" in before) == (name == "places_lt")
    assert "network.attention.g.weight" in after


def test_a_split_the_configuration_does_not_name_is_refused(finished_run, monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet10", THIN["resnet10"])
    done = CliRunner().invoke(app, ["evaluate", "--checkpoint", str(finished_run), "--split", "test"])
    assert done.exit_code == 1
    assert "--split test: the configuration of this model has no such split; it has: validation" in str(done.exception)
