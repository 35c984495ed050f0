"""Figures of trained models: CSV files compared with a plain computation for single images, and refusals."""

import csv

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from facelt.cli.main import app
from facelt.evaluation.figures import _tsne
from facelt.inference.model import load_model

# By the paper's convention one many-shot, one medium and two few-shot classes.
COUNTS = {"train": (101, 20, 12, 3), "test": (5, 4, 3, 3), "open": (4,)}
NAME = "open/<b>=1|.png"


@pytest.fixture(scope="module")
def listed_run(train, recipe, tmp_path_factory):
    """A run on lists with an open set, plain and OLTR: (its folder, {image: label} of each split, folder of images)."""
    folder = tmp_path_factory.mktemp("listed")
    random = np.random.default_rng(0)
    colour_53 = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40], [120, 120, 120]])
    lists: dict[str, dict[str, int]] = {}
    for split, counts in COUNTS.items():
        label_N = np.repeat([-1] if split == "open" else np.arange(4), counts)
        names = [f"{split}/{number}.png" for number in range(len(label_N))]
        lists[split] = dict(zip([NAME, *names[1:]] if split == "open" else names, label_N.tolist(), strict=True))
        (folder / split).mkdir()
        for name, label in lists[split].items():
            pixels = (colour_53[label] + random.integers(-50, 51, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name), pixels)
        (folder / f"{split}.txt").write_text("".join(f"{name} {label}\n" for name, label in lists[split].items()))
    data = {"kind": "list", "root": str(folder), "crop": 32, "resize": 32, "workers": 0}
    data |= {"open_set" if split == "open" else split: str(folder / f"{split}.txt") for split in COUNTS}
    stages = [{**stage, "epochs": 1} for stage in recipe(folder / "run")["stages"]]
    run = train(folder / "run", data=data, stages=stages, optim={"lr": 0.02, "batch": 16})
    return run, lists, folder


@pytest.fixture
def figures(tmp_path):
    """figures(*words) -> the rows of the CSV file, and checks the pictures; `fails` is an expected error."""

    def call(figure: str, *words: object, fails: str | None = None) -> list[dict]:
        command = ["figures", figure, "--out", str(tmp_path / "out"), "--overwrite", "--workers", "0"]
        command += map(str, words)
        done = CliRunner().invoke(app, command)
        if fails is not None:
            assert done.exit_code == 1
            assert fails in str(done.exception)
            return []
        assert done.exit_code == 0, done.exception
        for suffix in (".png", ".svg"):
            assert (tmp_path / "out" / f"{figure}{suffix}").stat().st_size > 1000
        assert cv2.imread(str(tmp_path / "out" / f"{figure}.png")) is not None
        with (tmp_path / "out" / f"{figure}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return call


class One:
    """A model that predicts one image at a time."""

    def __init__(self, path, folder):
        self.method, self.folder = load_model(path, torch.device("cpu")).method, folder

    def __call__(self, name: str) -> torch.Tensor:
        pixels = cv2.imread(str(self.folder / name))[:, :, ::-1].astype(np.float64) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]

    @torch.no_grad()
    def probabilities(self, name: str) -> np.ndarray:
        return self.method.logits(self(name)).full_BC[0].softmax(0).numpy()

    @torch.no_grad()
    def feature(self, name: str) -> np.ndarray:
        return self.method.features(self(name))[0].numpy()


def f1(model: One, images: dict[str, int], threshold: float) -> np.ndarray:
    named = []
    for name in images:
        probability_C = model.probabilities(name)
        named.append(int(probability_C.argmax()) if probability_C.max() >= threshold else -1)
    # Classes that were neither met nor named have none.
    wanted = [0, 1, 2, 3, -1]
    scores = f1_score(list(images.values()), named, labels=wanted, average=None, zero_division=np.nan)
    return np.array(scores)


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_gains_are_those_of_each_class(figures, listed_run, threshold):
    run, lists, folder = listed_run
    words = ("--checkpoint", run / "oltr", "--against", run / "plain")
    rows = figures("gain", *words, *(() if threshold is None else ("--threshold", threshold)))
    images = lists["test"] | (lists["open"] if threshold else {})
    oltr, plain = (f1(One(run / stage, folder), images, threshold or 0) for stage in ("oltr", "plain"))
    groups = ["many", "medium", "few", "few"]
    expected = list(zip(range(4), groups, COUNTS["train"], strict=True))
    if threshold:
        expected.append((-1, "open set", 0))
    assert [(int(row["class"]), row["group"], int(row["training_images"])) for row in rows] == expected
    for index, row in enumerate(rows):
        for column, value in (("f1", oltr[index]), ("f1_against", plain[index]), ("gain", (oltr - plain)[index])):
            assert row[column] == "" if np.isnan(value) else float(row[column]) == pytest.approx(value)


def test_gains_need_two_models_of_the_same_classes(figures, listed_run, finished_run):
    run, _, _ = listed_run
    figures("gain", "--checkpoint", run, fails="--against: gain needs the model to compare with")
    figures("tsne", "--checkpoint", run, "--against", run, fails="--against: gain needs the model to compare with")
    words = ("--checkpoint", run, "--against", finished_run)
    figures("gain", *words, fails="trained on other classes")
    words = ("--checkpoint", finished_run, "--against", finished_run, "--split", "validation")
    figures("gain", *words, "--threshold", 0.1, fails="--split open: the configuration of this model has no such split")


@pytest.mark.parametrize(("stage", "kind"), [("plain", "direct"), ("oltr", "meta")])
def test_points_are_of_the_images_embeddings(figures, listed_run, stage, kind, monkeypatch):
    run, lists, folder = listed_run
    given = []
    monkeypatch.setattr("facelt.evaluation.figures._tsne", lambda *words: given.append(words) or _tsne(*words))
    rows = figures("tsne", "--checkpoint", run / stage, "--kind", kind, "--seed", 3)
    images = lists["test"] | lists["open"]
    groups = {0: "many", 1: "medium", 2: "few", 3: "few", -1: "open set"}
    assert [(row["image"], int(row["label"]), row["group"]) for row in rows] == [
        (name, label, groups[label]) for name, label in images.items()
    ]
    ((feature_ND, seed),) = given
    assert seed == 3
    model = One(run / stage, folder)
    with torch.no_grad():
        expected = torch.cat([model.method.embed(model(name)).by_kind[kind] for name in images])
    np.testing.assert_allclose(feature_ND, expected, atol=1e-5)
    position_N2 = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    np.testing.assert_allclose(position_N2, _tsne(feature_ND, 3), rtol=1e-4)


def test_fewer_points_are_drawn_by_the_seed_from_both_sets(figures, listed_run):
    run, lists, _ = listed_run
    words = ("--checkpoint", run, "--images", 10)
    drawn = [[row["image"] for row in figures("tsne", *words, "--seed", seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    # 15 test images and 4 of the open set: ten of them are eight and two.
    assert [sum(name in lists[split] for name in drawn[0]) for split in ("test", "open")] == [8, 2]
    figures("tsne", "--checkpoint", run, "--images", 3, fails="--images: t-SNE needs at least 5 images")
    figures(
        "tsne", "--checkpoint", run / "plain", "--kind", "meta", fails="makes no embedding of kind 'meta', only direct"
    )


def test_the_plane_keeps_apart_what_is_apart():
    random = np.random.default_rng(0)
    feature_ND = np.concatenate([random.normal(size=(30, 8)), random.normal(20, size=(30, 8))]).astype(np.float32)
    first_N2, second_N2 = np.split(_tsne(feature_ND, 0), 2)
    within = max(np.linalg.norm(part - part.mean(0), axis=1).mean() for part in (first_N2, second_N2))
    assert np.linalg.norm(first_N2.mean(0) - second_N2.mean(0)) > 3 * within


def test_concepts_are_the_strongest_coefficients_and_their_nearest_images(figures, listed_run):
    run, lists, folder = listed_run
    rows = figures("concepts", "--checkpoint", run, "--images", 4, "--seed", 1)
    assert len(rows) == 4 * 3
    model = One(run / "oltr", folder)
    hallucinator, centroid_CD = model.method.head.hallucinator, model.method.memory.centroid_CD.detach().numpy()
    weight_CD, bias_C = hallucinator.weight.detach().numpy(), hallucinator.bias.detach().numpy()
    distances = {
        label: {
            name: float(np.linalg.norm(model.feature(name) - centroid_CD[label]))
            for name, own in lists["train"].items()
            if own == label
        }
        for label in range(4)
    }
    for index, row in enumerate(rows):
        raised_C = np.exp(weight_CD @ model.feature(row["image"]) + bias_C)
        share_C = raised_C / raised_C.sum()
        label = int(np.argsort(-share_C)[index % 3])
        assert (int(row["place"]), int(row["class"])) == (index % 3 + 1, label)
        assert int(row["label"]) == lists["test"][row["image"]]
        assert float(row["coefficient"]) == pytest.approx(share_C[label], rel=1e-4)
        assert row["nearest_image"] == min(distances[label], key=distances[label].get)
        assert float(row["distance"]) == pytest.approx(min(distances[label].values()), rel=1e-3)


def test_concepts_of_the_open_set_are_shown_and_its_names_stay_text(figures, listed_run, tmp_path):
    run, _, _ = listed_run
    rows = figures("concepts", "--checkpoint", run, "--split", "open")
    assert {row["label"] for row in rows} == {"-1"}
    assert NAME in {row["image"] for row in rows}
    assert f'"{NAME}"' in (tmp_path / "out" / "concepts.csv").read_text()
    assert "open set" in (tmp_path / "out" / "concepts.svg").read_text()


def test_only_a_model_with_a_memory_has_concepts(figures, listed_run):
    run, _, _ = listed_run
    figures("concepts", "--checkpoint", run / "plain", fails="stage plain has no memory")


def test_an_image_beyond_the_limit_of_pixels_is_not_decoded(figures, train, recipe, listed_run, tmp_path):
    """The limit is that of the run; an image of the test list is now larger."""
    _, _, folder = listed_run
    (tmp_path / "large.txt").write_text("test/0.png 0\nlarge.png 1\n")
    cv2.imwrite(str(folder / "large.png"), np.zeros((40, 40, 3), np.uint8))
    data = {
        "kind": "list",
        "root": str(folder),
        "train": str(folder / "train.txt"),
        "test": str(tmp_path / "large.txt"),
    }
    data |= {"crop": 32, "resize": 32, "workers": 0, "max_pixels": 1100}
    stages = [{**recipe(tmp_path)["stages"][0], "epochs": 1, "keep": "last"}]
    run = train(tmp_path / "run", data=data, stages=stages, optim={"lr": 0.02, "batch": 16})
    figures("tsne", "--checkpoint", run, fails="large.png")
