"""`facelt dataset`: statistics of the published lists and subsets, without images."""

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from facelt.cli.main import app


@pytest.fixture(scope="module")
def lists(real_data, tmp_path_factory) -> Path:
    """Returns the folder of the published lists, without images."""
    folder = tmp_path_factory.mktemp("lists")
    with tarfile.open(real_data / "lists.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("Places_LT_train.txt")).parent


def stats_of(config: Path, **settings: object) -> dict:
    """Returns the JSON of the command for a recipe with changed `data` settings."""
    words = [word for key, value in settings.items() for word in ("--set", f"data.{key}={value}")]
    done = CliRunner().invoke(app, ["dataset", "--config", str(config), "--json", *words])
    if done.exit_code:
        raise done.exception
    return json.loads(done.stdout)


def bands(split: dict, what: str, convention: str = "paper") -> list[int]:
    return [split["shots"][convention][band][what] for band in ("many", "medium", "few")]


def test_places_lt_is_as_published(lists, root):
    names = {split: lists / f"Places_LT_{list_}.txt" for split, list_ in (("train", "train"), ("validation", "val"))}
    names |= {"test": lists / "Places_LT_test.txt", "open_set": lists / "Places_LT_open.txt"}
    stats = stats_of(root / "configs/places_lt.yaml", **names)
    assert (stats["kind"], stats["classes"], list(stats["splits"])) == (
        "list",
        365,
        ["train", "validation", "test", "open"],
    )
    train, validation, test, open_ = stats["splits"].values()
    assert (train["images"], train["classes"], train["largest"], train["smallest"]) == (62_500, 365, 4980, 5)
    assert (bands(train, "classes"), bands(train, "images")) == ([131, 163, 71], [52_762, 8_934, 804])
    assert sum(bands(train, "classes", "released")) == 365
    assert bands(train, "classes", "released")[0] >= 131
    assert (validation["images"], validation["largest"], validation["smallest"]) == (7_300, 20, 20)
    assert (test["images"], test["largest"], test["smallest"]) == (36_500, 100, 100)
    assert bands(test, "images") == [13_100, 16_300, 7_100]
    assert (open_["images"], open_["open_images"], open_["classes"], open_["largest"]) == (6_600, 6_600, 0, None)


def test_the_published_lists_of_imagenet_lt_and_inaturalist_are_as_stated(lists, root):
    """The training lists are not available; other lists replace them to set the number of classes."""
    names = {"test": lists / "ImageNet_LT_test.txt", "open_set": lists / "ImageNet_LT_open.txt"}
    validation = lists / "ImageNet_LT_val.txt"
    stats = stats_of(root / "configs/imagenet_lt.yaml", train=validation, validation=validation, **names)["splits"]
    assert (stats["validation"]["images"], stats["validation"]["classes"]) == (20_000, 1000)
    assert (stats["validation"]["largest"], stats["validation"]["smallest"]) == (20, 20)
    assert (stats["test"]["images"], stats["test"]["classes"]) == (50_000, 1000)
    assert (stats["open"]["images"], stats["open"]["open_images"]) == (18_000, 18_000)
    # Twenty images are few by the released code and medium by the paper.
    assert bands(stats["train"], "classes") == [0, 1000, 0]
    assert bands(stats["train"], "classes", "released") == [0, 0, 1000]
    names = dict.fromkeys(("train", "test"), lists / "iNaturalist18_val.txt")
    stats = stats_of(root / "configs/inaturalist18.yaml", **names)["splits"]["test"]
    assert (stats["images"], stats["classes"], stats["largest"], stats["smallest"]) == (24_426, 8142, 3, 3)


# METHODS: images and shot bands of CIFAR-100-LT.
CIFAR100 = {
    10: (19_573, [69, 31, 0]),
    20: (15_907, [53, 47, 0]),
    50: (12_608, [41, 41, 18]),
    100: (10_847, [35, 35, 30]),
    200: (9_502, [30, 31, 39]),
}


@pytest.mark.parametrize("imbalance", CIFAR100)
def test_cifar_100_lt_is_as_published(real_data, root, imbalance):
    config = root / "configs/cifar100_lt/base.yaml"
    stats = stats_of(config, root=real_data / "cifar100_lt", imbalance=imbalance)
    images, classes = CIFAR100[imbalance]
    assert (stats["kind"], stats["classes"], list(stats["splits"])) == ("cifar", 100, ["train", "test"])
    assert stats["splits"]["train"]["images"] == images
    assert bands(stats["splits"]["train"], "classes") == classes
    assert bands(stats["splits"]["test"], "classes") == classes
    assert bands(stats["splits"]["test"], "images") == [100 * count for count in classes]


def test_a_record_is_counted_as_it_is_split(tiny_faces, root):
    stats = stats_of(root / "configs/demo.yaml", train=tiny_faces, image_size="[32, 32]", validation_fraction=0.2)
    train = stats["splits"]["train"]
    assert (stats["kind"], stats["classes"], list(stats["splits"])) == ("record", 6, ["train", "validation", "test"])
    assert sum(split["images"] for split in stats["splits"].values()) == 42
    assert (train["classes"], train["smallest"]) == (5, 1)


def test_the_tables_are_equal(tmp_path, root):
    (tmp_path / "train.txt").write_text("a b/1.png 0\n" * 1234 + "c/1.png 1\n" * 20)
    (tmp_path / "open.txt").write_text("o.png -1\n")
    words = [f"data.train={tmp_path / 'train.txt'}", "data.validation=null", "data.test=null", "data.num_classes=3"]
    words += [f"data.open_set={tmp_path / 'open.txt'}"]
    sets = [part for word in words for part in ("--set", word)]
    done = CliRunner().invoke(app, ["dataset", "--config", str(root / "configs/places_lt.yaml"), *sets])
    assert done.exit_code == 0, done.exception
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert ["train", "1,254", "0", "2", "1,234", "20"] in rows
    assert ["open", "1", "1", "0", "-", "-"] in rows
    assert ["train", "1 / 1,234", "1 / 20", "0 / 0"] in rows
    assert ["train", "1 / 1,234", "0 / 0", "1 / 20"] in rows


@pytest.mark.parametrize(
    ("train", "open_", "message"),
    [
        ("a/1.png 0\nb/1.png -1\n", "o.png -1\n", r"train\.txt: a training list cannot contain open-set images"),
        ("a/1.png 0\n", "o.png -1\np.png 2\n", r"open\.txt: every image of an open-set list has the label -1, not 2"),
        ("a/1.png 0\n", "o.png\n", r"open\.txt, line 1: expected a path, one space and a label"),
    ],
)
def test_lists_that_mix_known_and_open_images_are_refused(tmp_path, root, train, open_, message):
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "open.txt").write_text(open_)
    lists = {"train": tmp_path / "train.txt", "open_set": tmp_path / "open.txt", "validation": "null", "test": "null"}
    with pytest.raises(Exception, match=message) as caught:
        stats_of(root / "configs/places_lt.yaml", num_classes=3, **lists)
    assert "\n" not in str(caught.value)
