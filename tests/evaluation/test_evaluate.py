"""`facelt evaluate` on a tiny model of lists with an open set: metrics recomputed from the images."""

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.evaluation.evaluate import OpenSetOptions, evaluate_model
from facelt.inference.model import load_model
from facelt.training.run import run

CPU = torch.device("cpu")
NAMES = ("apple", "=cmd()", "bear", "tail")
COUNTS = (24, 12, 8, 3)
OPEN = ("wolf", "yak", "zebra")


def draw(folder: Path) -> None:
    """Draws pictures of 16 x 16 pixels, 48 of each known and open class, named by their number."""
    random = np.random.default_rng(0)
    for name in (*NAMES, *OPEN):
        base_443 = random.integers(0, 256, (4, 4, 3))
        (folder / name).mkdir(parents=True)
        for number in range(48):
            small_443 = np.clip(base_443 + random.integers(-70, 71, (4, 4, 3)), 0, 255).astype(np.uint8)
            image = cv2.resize(small_443, (16, 16), interpolation=cv2.INTER_LINEAR)
            cv2.imwrite(str(folder / name / f"{number:02}.png"), image)


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    """The folder of images and lists."""
    folder = tmp_path_factory.mktemp("lists")
    draw(folder / "images")
    for split, numbers in (("validation", range(24, 32)), ("test", range(32, 48))):
        lines = [f"{name}/{number:02}.png {label}" for label, name in enumerate(NAMES) for number in numbers]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    (folder / "open.txt").write_text("\n".join(f"{name}/{number:02}.png -1" for name in OPEN for number in range(10)))
    return folder


@pytest.fixture(scope="module")
def trained(lists, recipe, tmp_path_factory):
    """trained(name, counts) -> the folder of a run with these numbers of images per class; each is trained once."""
    made = {}

    def train(name: str = "run", counts: tuple[int, ...] = COUNTS) -> Path:
        if name not in made:
            lines = [f"{NAMES[label]}/{n:02}.png {label}" for label, count in enumerate(counts) for n in range(count)]
            (lists / f"{name}.txt").write_text("\n".join(lines))
            splits = {split: str(lists / f"{split}.txt") for split in ("validation", "test")}
            splits["open_set"] = str(lists / "open.txt")
            data = {"kind": "list", "root": str(lists / "images"), "train": str(lists / f"{name}.txt"), **splits}
            values = recipe(
                tmp_path_factory.mktemp("runs") / name, data={**data, "crop": 16, "resize": 16, "workers": 0}
            )
            values["stages"] = [{**stage, "epochs": 6, "keep": "last"} for stage in values["stages"]]
            made[name] = run(TrainConfig.model_validate(values))
        return made[name]

    return train


@pytest.fixture
def evaluate(cli):
    """evaluate(*words) -> (exit code, stdout, stderr) of the command."""
    return lambda *words: cli("evaluate", *words, "--workers", "0")


@pytest.fixture
def report(evaluate):
    """report(*words) -> the JSON output of the command, which must not fail."""

    def ask(*words: object) -> dict:
        code, out, error = evaluate(*words, "--json")
        assert code == 0, error
        return json.loads(out)

    return ask


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def images_of(folder: Path, split: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(labels, softmax, logits) of a run's last stage, one image at a time, read with OpenCV."""
    model = load_model(folder, CPU)
    data = model.config.data.open(0)
    mean, std = np.array(model.config.data.mean), np.array(model.config.data.std)
    labels, rows = [], []
    for path, label in zip(data.evaluation[split].dataset.paths, data.evaluation[split].labels.tolist(), strict=True):
        rgb = cv2.imread(str(Path(model.config.data.root) / path))[:, :, ::-1] / 255
        image = torch.from_numpy(((rgb - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            rows.append(model.method.logits(image).local_BC[0].double().numpy())
        labels.append(label)
    logits = np.array(rows)
    whole = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, whole / whole.sum(axis=1, keepdims=True), logits


def test_closed_figures_are_those_of_the_images_one_by_one(report, trained):
    labels, softmax, _ = images_of(trained(), "test")
    right = softmax.argmax(1) == labels
    result = report("--checkpoint", trained(), "--split", "test")
    assert result["schema"] == "facelt.evaluation/1"
    assert result["model"]["name"] == "run/oltr"
    assert result["overall"] == pytest.approx(right.mean())
    assert 0 < right.mean() < 1
    # 24 and 12 images are medium and few by the paper, where below 20 are few.
    assert result["medium"] == pytest.approx(right[:16].mean())
    assert result["few"] == pytest.approx(right[16:].mean())
    assert (result["many"], result["images"]) == (None, {"many": 0, "medium": 16, "few": 48})
    assert result["open"] is None
    edges = np.ceil(softmax.max(1) * 15)
    gaps = [abs(right[edges == e].sum() - softmax.max(1)[edges == e].sum()) for e in np.unique(edges)]
    assert result["ece"] == pytest.approx(sum(gaps) / len(labels), abs=1e-6)


def test_further_models_are_compared_with_the_first(evaluate, trained):
    words = ("--checkpoint", trained() / "plain", "--checkpoint", trained(), "--split", "test")
    code, out, error = evaluate(*words, "--json")
    assert code == 0, error
    plain, oltr = map(json.loads, out.splitlines())
    assert "comparison" not in plain
    assert oltr["comparison"]["reference"] == "run/plain"
    rows = {row["band"]: row for row in oltr["comparison"]["differences"]}
    assert list(rows) == ["overall", "medium", "few"]
    for band, row in rows.items():
        assert row["difference"] == pytest.approx(oltr[band] - plain[band])
    code, out, _ = evaluate(*words)
    assert code == 0
    assert "difference to run/plain" in " ".join(out.split())
    assert "difference" in out


def test_models_of_other_training_images_are_not_compared(evaluate, trained):
    code, out, error = evaluate("--checkpoint", trained(), "--checkpoint", trained("steep", (24, 6, 3, 1)), "--json")
    assert code == 0
    assert all("comparison" not in json.loads(line) for line in out.splitlines())
    assert "steep/oltr is not compared with run/oltr" in error


def test_figures_with_rejection_are_those_of_the_images_one_by_one(report, trained):
    labels, softmax, _ = images_of(trained(), "test")
    _, unknown, _ = images_of(trained(), "open")
    threshold = float(np.quantile(np.concatenate([softmax.max(1), unknown.max(1)]), 0.4))
    result = report("--checkpoint", trained(), "--split", "test", "--open", "threshold", "--threshold", threshold)[
        "open"
    ]
    answers = np.where(softmax.max(1) < threshold, -1, softmax.argmax(1))
    right = answers == labels
    kept_open = unknown.max(1) >= threshold
    assert (result["threshold"], result["threshold_from"]) == (threshold, "given")
    assert (result["overall"], result["few"]) == (pytest.approx(right.mean()), pytest.approx(right[16:].mean()))
    assert result["open_rejected"] == pytest.approx(1 - kept_open.mean())
    precision, recall = right.sum() / len(right), right.sum() / (right.sum() + kept_open.sum())
    assert result["f_measure_released"] == pytest.approx(2 * precision * recall / (precision + recall))
    precision = right.sum() / (answers >= 0).sum()
    assert result["f_measure_paper"] == pytest.approx(2 * precision * recall / (precision + recall))
    beats = softmax.max(1)[:, None] > unknown.max(1)
    assert result["auroc"] == pytest.approx(beats.mean(), abs=1e-3)
    assert result["oscr"] == pytest.approx((beats * (softmax.argmax(1) == labels)[:, None]).mean(), abs=1e-3)
    confusion = result["confusion"]
    assert confusion["open"] == {
        "right": 0,
        "many": 0,
        "medium": int((kept_open & (unknown.argmax(1) == 0)).sum()),
        "few": int((kept_open & (unknown.argmax(1) > 0)).sum()),
        "rejected": int((~kept_open).sum()),
    }
    assert confusion["few"]["rejected"] == int((answers[16:] < 0).sum())


@pytest.mark.parametrize("method", ["threshold", "openmax"])
def test_a_methods_own_threshold(report, trained, method):
    result = report("--checkpoint", trained(), "--open", method)["open"]
    assert (result["threshold"], result["threshold_from"]) == (0.1, "the method's own")
    assert result["open_images"] == 30
    assert sum(result["confusion"]["open"].values()) == 30


@pytest.mark.parametrize("method", ["reachability", "odin"])
def test_a_threshold_set_on_known_validation_images_keeps_95_percent_of_them(report, trained, method):
    result = report("--checkpoint", trained(), "--open", method)["open"]
    assert result["threshold_from"] == "accepts 95 % of known validation images"
    rejected = sum(result["confusion"][band]["rejected"] for band in ("many", "medium", "few"))
    assert rejected == 32 - 31  # 95 % of 32 are 30.4, and scores have no ties
    assert result["fpr_at_95_tpr"] == pytest.approx(1 - result["open_rejected"])
    on_test = report("--checkpoint", trained(), "--split", "test", "--open", method)["open"]
    assert on_test["threshold"] == result["threshold"]


def test_reachability_separates_by_the_distance_to_centroids(report, trained):
    model = load_model(trained(), CPU)
    data = model.config.data.open(0)
    centroid_CD = model.method.memory.centroid_CD.detach().double()
    scores = {}
    for split in ("test", "open"):
        features = []
        for index in range(len(data.evaluation[split].dataset)):
            pixels = torch.from_numpy(data.evaluation[split].dataset[(index, 0)].image_HW3).double() / 255
            image = (pixels - torch.tensor(model.config.data.mean)) / torch.tensor(model.config.data.std)
            with torch.no_grad():
                features.append(model.method.network(image.permute(2, 0, 1)[None].float())[0].double())
        scores[split] = -torch.cdist(torch.stack(features), centroid_CD).amin(1)
    result = report("--checkpoint", trained(), "--split", "test", "--open", "reachability")["open"]
    expected = (scores["test"][:, None] > scores["open"]).double().mean().item()
    assert result["auroc"] == pytest.approx(expected, abs=1e-3)


def test_classes_and_their_names_come_as_a_table_that_runs_nothing(evaluate, trained, tmp_path):
    words = (
        "--checkpoint",
        trained(),
        "--split",
        "test",
        "--open",
        "threshold",
        "--per-class",
        tmp_path / "classes.csv",
    )
    code, out, error = evaluate(*words)
    assert code == 0, error
    assert f"written: {tmp_path / 'classes.csv'}" in out
    rows = read_csv(tmp_path / "classes.csv")
    assert [row["name"] for row in rows] == ["apple", "'=cmd()", "bear", "tail"]
    assert [int(row["training_images"]) for row in rows] == list(COUNTS)
    assert [row["band"] for row in rows] == ["medium", "few", "few", "few"]
    labels, softmax, _ = images_of(trained(), "test")
    right = softmax.argmax(1) == labels
    for label, row in enumerate(rows):
        own = right[16 * label : 16 * (label + 1)]
        assert (int(row["images"]), int(row["right"])) == (16, own.sum())
        assert float(row["accuracy"]) == pytest.approx(own.mean())
        assert float(row["accuracy_with_rejection"]) <= float(row["accuracy"])


def test_the_tables_fit_80_columns_and_bear_the_figures(evaluate, report, trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--checkpoint", trained(), "--open", "openmax")
    code, out, _ = evaluate(*words)
    result = report(*words)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for figure in (result["overall"], result["ece"], result["open"]["auroc"], result["open"]["f_measure_paper"]):
        assert f"{100 * figure:.2f}" in out
    assert "openmax, threshold 0.1 (the method's own), 30 open images" in out


def points(rows: list[dict], x: str, figure: str) -> list[tuple[float, float]]:
    return [(float(row[x]), float(row[figure])) for row in rows if row[figure]]


def drawn(path: Path) -> str:
    """The text of an SVG file."""
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).getroot().iter() if element.text)


def test_a_sweep_of_the_threshold(evaluate, report, trained, tmp_path):
    words = ("--checkpoint", trained(), "--open", "threshold", "--sweep", "threshold", "--out", tmp_path)
    code, out, error = evaluate(*words)
    assert code == 0, error
    rows = read_csv(tmp_path / "threshold.csv")
    assert [float(row["threshold"]) for row in rows] == pytest.approx(np.linspace(0, 1, 21))
    rejected = [share for _, share in points(rows, "threshold", "open_rejected")]
    assert rejected == sorted(rejected)
    assert rejected[0] == 0
    for threshold in (0.3, 0.5):
        (row,) = [row for row in rows if float(row["threshold"]) == pytest.approx(threshold)]
        result = report("--checkpoint", trained(), "--open", "threshold", "--threshold", row["threshold"])["open"]
        for figure in ("overall", "few", "f_measure_paper", "f_measure_released", "macro_f_with_unknown"):
            assert float(row[figure]) == pytest.approx(result[figure])
    assert "F-measure, released form" in drawn(tmp_path / "threshold.svg")
    assert cv2.imread(str(tmp_path / "threshold.png")) is not None
    assert out.count("written: ") == 5
    confusion = {row["true"]: row for row in read_csv(tmp_path / "confusion.csv")}
    assert sum(int(confusion["open"][key]) for key in ("named_medium", "named_few", "rejected")) == 30
    curve = points(read_csv(tmp_path / "oscr.csv"), "open_accepted", "known_right")
    assert curve[0] == (0, 0)
    assert curve == sorted(curve)


def test_a_sweep_of_reachability_goes_through_all_scores(evaluate, trained, tmp_path):
    words = ("--checkpoint", trained(), "--open", "reachability", "--sweep", "threshold", "--out", tmp_path)
    assert evaluate(*words)[0] == 0
    rejected = points(read_csv(tmp_path / "threshold.csv"), "threshold", "open_rejected")
    assert len(rejected) == 21
    assert rejected == sorted(rejected)
    assert rejected[0][1] == 0
    assert rejected[-1][1] > 0.9


def test_a_sweep_of_open_classes_adds_whole_classes_in_a_drawn_order(evaluate, report, trained, tmp_path):
    words = ("--checkpoint", trained(), "--open", "threshold", "--sweep", "open-classes")
    assert evaluate(*words, "--out", tmp_path / "a")[0] == 0
    rows = read_csv(tmp_path / "a/open-classes.csv")
    assert [int(row["open_classes"]) for row in rows] == [1, 2, 3]
    assert [int(row["open_images"]) for row in rows] == [10, 20, 30]
    whole = report("--checkpoint", trained(), "--open", "threshold")["open"]
    assert float(rows[-1]["f_measure_released"]) == pytest.approx(whole["f_measure_released"])
    assert len({row["overall"] for row in rows}) == 1
    assert evaluate(*words, "--out", tmp_path / "b", "--seed", 0)[0] == 0
    assert read_csv(tmp_path / "b/open-classes.csv") == rows


def test_a_sweep_of_imbalance_compares_models(evaluate, report, trained, tmp_path):
    runs = trained(), trained("steep", (24, 6, 3, 1))
    words = [word for path in runs for stage in ("plain", "oltr") for word in ("--checkpoint", path / stage)]
    code, out, error = evaluate(*words, "--open", "threshold", "--sweep", "longtailness", "--out", tmp_path, "--json")
    assert code == 0, error
    assert [json.loads(line)["model"]["name"] for line in out.splitlines()] == [
        "run/plain", "run/oltr", "steep/plain", "steep/oltr"
    ]  # fmt: skip
    assert "longtailness.svg" in error
    rows = read_csv(tmp_path / "longtailness.csv")
    assert [(row["model"], float(row["imbalance"])) for row in rows] == [
        ("oltr", 8), ("oltr", 24), ("plain", 8), ("plain", 24)
    ]  # fmt: skip
    whole = report("--checkpoint", runs[1] / "plain", "--open", "threshold")["open"]
    assert float(rows[3]["f_measure_released"]) == pytest.approx(whole["f_measure_released"])
    words = ["--checkpoint", runs[0], "--checkpoint", runs[0]]
    code, out, _ = evaluate(*words, "--json")
    assert [json.loads(line)["model"]["name"] for line in out.splitlines()] == ["run/oltr", "run/oltr (2)"]
    words = ["--checkpoint", runs[0], "--checkpoint", runs[1]]
    assert evaluate(*words, "--sweep", "longtailness", "--out", tmp_path / "closed")[0] == 0
    rows = read_csv(tmp_path / "closed/longtailness.csv")
    assert float(rows[0]["overall"]) == pytest.approx(report("--checkpoint", runs[0])["overall"])
    assert rows[0]["f_measure_released"] == ""
    assert "few shots" in drawn(tmp_path / "closed/longtailness.svg")


def test_open_images_from_elsewhere(report, trained, lists):
    """The training images of a known class serve as unknown ones, from a folder and from a list."""
    words = ("--checkpoint", trained(), "--open", "threshold", "--threshold", 0)
    result = report(*words, "--open-images", lists / "images/apple")["open"]
    assert result["open_images"] == 48
    assert result["open_rejected"] == 0
    (lists / "some.txt").write_text("wolf/00.png\nyak/00.png\n")
    result = report(*words, "--open-images", lists / "some.txt", "--open-root", lists / "images")["open"]
    assert result["open_images"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threshold", 0.5), "--threshold: applies to open-set methods only; choose one with --open"),
        (("--open-images", "x"), "is trained on data of kind list; without --open"),
        (("--sweep", "threshold", "--out", "x"), "--sweep threshold: applies to open-set methods only"),
        (("--open", "threshold", "--sweep", "threshold"), "--sweep threshold: set --out"),
        (("--out", "x"), "--out: there is nothing to write into it"),
        (("--sweep", "longtailness", "--out", "x"), "--sweep longtailness: compares models"),
        (("--open", "threshold", "--open-images", "absent.txt"), "absent.txt: no such file or folder"),
    ],
)
def test_what_does_not_fit_together_is_one_line(evaluate, trained, words, message):
    code, _, error = evaluate("--checkpoint", trained(), *words)
    (line,) = (line for line in error.splitlines() if not line.startswith("model: "))
    assert code == 1
    assert message in line
    assert not Path("x").exists()


def test_what_a_model_lacks_is_named(evaluate, trained, finished_run, lists, tmp_path):
    code, _, error = evaluate("--checkpoint", trained() / "plain", "--open", "reachability")
    expected = "error: reachability: this model has no memory; choose another open-set method"
    assert (code, error.splitlines()[-1]) == (1, expected)
    code, _, error = evaluate("--checkpoint", finished_run, "--open", "threshold")
    assert code == 1
    assert "has no data.open_set; name images with --open-images" in error
    (lists / "flat.txt").write_text("wolf/00.png\nwolf/01.png\n")
    words = ("--open-images", lists / "flat.txt", "--open-root", lists / "images", "--sweep", "open-classes")
    code, _, error = evaluate("--checkpoint", trained(), "--open", "threshold", *words, "--out", tmp_path / "out")
    assert code == 1
    assert "the names of the unknown images do not give their classes" in error


@pytest.fixture(scope="module")
def evaluation(trained):
    """An evaluation of the tiny model by softmax threshold."""
    result, _ = evaluate_model(
        load_model(trained(), CPU), "validation", "paper", OpenSetOptions("threshold"), batch=16, workers=0
    )
    return result


def test_without_open_images_there_are_reasons_instead_of_figures(evaluation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluation.with_unknown(evaluation.unknown.subset(slice(0, 0))).report().json_values()
    assert result["open"]["reason"] == "there are 32 known and 0 open images"
    assert result["open"]["overall"] == pytest.approx(result["overall"])
    for figure in ("auroc", "aupr_known_positive", "oscr", "open_rejected", "macro_f_with_unknown"):
        assert result["open"][figure] is None
    assert result["open"]["open_images"] == 0


def test_without_known_images_neither(evaluation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = replace(evaluation, known=evaluation.known.subset(slice(0, 0))).report().json_values()
    assert (result["overall"], result["macro_f"], result["ece"]) == (None, None, None)
    assert result["open"]["reason"] == "there are 0 known and 30 open images"
    assert result["open"]["f_measure_paper"] is None
    assert sum(result["open"]["confusion"]["open"].values()) == 30
