"""Datasets of image files: lists, the layouts of Places-LT and ImageNet, folders, and malformed lists."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from facelt.data.batch import BadImage, SampleRequest
from facelt.data.image_files import ImageFolderDataset, ListDataset, UnlabelledListDataset, find_layout
from facelt.data.transforms import CenterCrop
from facelt.errors import UserError

CROP = CenterCrop(size=8, resize=8)
LISTED = ("data_256/a/airfield/1.jpg", "data_256/a/apartment_building/outdoor/2.jpg", "data_256/z/zen_garden/3.jpg")


def put(root: Path, path: str, payload: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(payload)


@pytest.fixture
def tree(tmp_path, encode) -> Path:
    for number, path in enumerate(("x/1.jpg", "x/2 of 2.jpg", "y/3.png")):
        put(tmp_path / "images", path, encode(10, 12, seed=number, suffix=Path(path).suffix))
    return tmp_path / "images"


def listed(tree: Path, text: str) -> Path:
    path = tree.parent / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_with_labels_and_the_open_set(tree):
    dataset = ListDataset(listed(tree, "x/1.jpg 4\nx/2 of 2.jpg 0\ny/3.png -1\n"), tree, transform=CROP)
    assert dataset.labels.tolist() == [4, 0, -1]
    assert dataset.num_classes == 5
    assert dataset.image_name(1) == "x/2 of 2.jpg"
    assert dataset.image_size == (8, 8)
    sample = dataset[SampleRequest(1, 5)]
    assert (sample.label, sample.index, sample.seed, sample.image_HW3.shape) == (0, 1, 5, (8, 8, 3))
    wider = ListDataset(listed(tree, "x/1.jpg 4\r\n"), tree, transform=CROP, num_classes=9)
    assert (wider.num_classes, wider.labels.tolist()) == (9, [4])


def test_a_list_of_paths_alone(tree):
    dataset = UnlabelledListDataset(listed(tree, "y/3.png\nx/2 of 2.jpg\n"), tree, transform=CROP)
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.num_classes == 0
    assert dataset[SampleRequest(1, 0)].image_HW3.shape == (8, 8, 3)


def test_a_missing_or_broken_file_is_a_bad_image(tree):
    put(tree, "x/broken.jpg", b"no image")
    dataset = ListDataset(listed(tree, "x/1.jpg 0\nx/absent.jpg 0\nx/broken.jpg 0\n"), tree, transform=CROP)
    absent, broken = dataset[SampleRequest(1, 0)], dataset[SampleRequest(2, 0)]
    assert isinstance(absent, BadImage)
    assert absent.name == "x/absent.jpg"
    assert "No such file" in absent.reason
    assert broken == BadImage("x/broken.jpg", "not a JPEG, PNG, WebP or BMP image")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/1.jpg 0\nx/2.jpg\n", r"list\.txt, line 2: expected a path, one space and a label, found 'x/2\.jpg'"),
        ("x/1.jpg 0\nx/2.jpg one\n", "line 2: expected a path"),
        ("x/1.jpg 0.5\n", "line 1: expected a path"),
        (" 3\n", "line 1: expected a path"),
        ("x/1.jpg 99999999999999999999\n", "line 1: expected a path"),
        ("x/1.jpg 0\n\nx/2.jpg 1\n", "line 2 is empty"),
        ("", "the list is empty"),
        ("x/1.jpg -2\n", r"line 1: label -2 is not -1 \(open set\) or 0 to 6"),
        ("x/1.jpg 0\nx/1.jpg 7\n", "line 2: label 7 is not"),
        ("x/1.jpg 0\n/etc/passwd 0\n", "line 2: '/etc/passwd' leads out of"),
        ("x/../../secret.jpg 0\n", "line 1: .* leads out of"),
        ("x/1.jpg 0\nx/\0.jpg 0\n", "line 2: a NUL character"),
        ("q/1.jpg 0\n", "line 1: .*q/1.jpg does not exist, nor do other"),
    ],
)
def test_a_list_with_a_mistake_is_refused(tree, text, message):
    with pytest.raises(UserError, match=message) as caught:
        ListDataset(listed(tree, text), tree, transform=CROP, num_classes=7)
    assert "list.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tree):
    os.mkfifo(tree / "x/fifo.jpg")
    (tree / "x/folder.jpg").mkdir()
    text = "x/1.jpg 0\nx/fifo.jpg 0\nx/folder.jpg 0\n"
    _, fifo, folder = (ListDataset(listed(tree, text), tree, transform=CROP)[SampleRequest(i, 0)] for i in range(3))
    assert fifo == BadImage("x/fifo.jpg", f"cannot read {tree / 'x/fifo.jpg'}: a named pipe, not a regular file")
    assert folder.reason.endswith("a folder, not a regular file")
    for path in (tree / "x/fifo.jpg", tree):
        with pytest.raises(UserError, match=r"cannot be read \(a (named pipe|folder), not a regular file\)"):
            ListDataset(path, tree, transform=CROP)


def test_a_missing_or_binary_list_is_refused(tree):
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        ListDataset(tree / "absent.txt", tree, transform=CROP)
    (tree / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.txt: cannot be read"):
        ListDataset(tree / "binary.txt", tree, transform=CROP)


@pytest.mark.parametrize(
    ("layout", "places"),
    [
        ("as listed", LISTED),
        (
            "train/<scene>-<kind>",
            ("train/airfield/1.jpg", "train/apartment_building-outdoor/2.jpg", "train/zen_garden/3.jpg"),
        ),
        (
            "train/<scene>/<kind>",
            ("train/airfield/1.jpg", "train/apartment_building/outdoor/2.jpg", "train/zen_garden/3.jpg"),
        ),
    ],
)
def test_both_layouts_of_places_serve_the_published_list(tmp_path, encode, layout, places):
    for number, path_ in enumerate(places):
        put(tmp_path, path_, encode(8, 8, seed=number))
    text = "".join(f"{path} {label}\n" for label, path in enumerate(LISTED))
    dataset = ListDataset(listed(tmp_path / "root", text), tmp_path, transform=CROP)
    assert dataset.layout == layout
    for number in range(3):
        sample = dataset[SampleRequest(number, 0)]
        assert sample.label == number
        assert dataset.read_encoded(number) == encode(8, 8, seed=number)
    assert dataset.image_name(1) == LISTED[1]


@pytest.mark.parametrize("scene", ["apartment_building-outdoor", "apartment_building/outdoor"])
def test_a_list_in_the_other_layout_finds_the_published_tree(tmp_path, encode, scene):
    put(tmp_path, LISTED[1], encode(8, 8))
    path = f"train/{scene}/2.jpg"
    assert find_layout(tmp_path, [path]) == "data_256/<letter>/<scene>/<kind>"
    dataset = ListDataset(listed(tmp_path / "root", f"{path} 0\n"), tmp_path, transform=CROP)
    assert dataset.read_encoded(0) == encode(8, 8)


def test_imagenets_validation_images_may_lie_in_one_folder(tmp_path, encode):
    path = "val/n01440764/ILSVRC2012_val_00029930.JPEG"
    put(tmp_path, "val/ILSVRC2012_val_00029930.JPEG", encode(8, 8, suffix=".jpg"))
    dataset = ListDataset(listed(tmp_path / "root", f"{path} 0\n"), tmp_path, transform=CROP)
    assert dataset.read_encoded(0) == encode(8, 8, suffix=".jpg")
    put(tmp_path, path, encode(8, 8, seed=1, suffix=".jpg"))
    assert find_layout(tmp_path, [path]) == "as listed"


def test_a_name_that_the_chosen_layout_does_not_know_is_a_bad_image(tmp_path, encode):
    put(tmp_path, "train/airfield/1.jpg", encode(8, 8))
    dataset = ListDataset(listed(tmp_path / "root", f"{LISTED[0]} 0\nelsewhere/4.jpg 0\n"), tmp_path, transform=CROP)
    assert isinstance(dataset[SampleRequest(1, 0)], BadImage)


def test_a_folder_of_identities(tree, encode):
    put(tree, "y/deeper/4.JPG", encode(8, 8, suffix=".jpg"))
    put(tree, "y/notes.txt", b"no image")
    dataset = ImageFolderDataset(tree, transform=CROP)
    assert [dataset.image_name(i) for i in range(len(dataset))] == [
        "x/1.jpg",
        "x/2 of 2.jpg",
        "y/3.png",
        "y/deeper/4.JPG",
    ]
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.identities.tolist() == ["x", "y"]
    assert dataset.num_classes == 2
    assert dataset[SampleRequest(3, 0)].label == 1


def test_a_flat_folder_and_a_mixed_one(tree, encode):
    flat = ImageFolderDataset(tree / "x", transform=CROP)
    assert flat.labels.tolist() == [-1, -1]
    assert flat.num_classes == 0
    put(tree, "a.png", encode(8, 8))
    mixed = ImageFolderDataset(tree, transform=CROP)
    assert mixed.labels.tolist() == [-1, 0, 0, 1]
    assert mixed.identities.tolist() == ["x", "y"]


def test_a_folder_of_unknown_images_has_no_labels(tree):
    dataset = ImageFolderDataset(tree, transform=CROP, open_set=True)
    assert dataset.paths == ImageFolderDataset(tree, transform=CROP).paths
    assert dataset.labels.tolist() == [-1, -1, -1]
    assert dataset.num_classes == 0


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="contains no image"):
        ImageFolderDataset(tmp_path, transform=CROP)
    with pytest.raises(UserError, match="does not exist"):
        ImageFolderDataset(tmp_path / "absent", transform=CROP)


@pytest.fixture(scope="module")
def places_lists(real_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    with tarfile.open(real_data / "lists.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("Places_LT_train.txt")).parent


def test_the_published_places_lt_list(places_lists, tmp_path, encode):
    first = (places_lists / "Places_LT_train.txt").read_text().split(" ")[0]
    put(tmp_path, first, encode(8, 8))
    dataset = ListDataset(places_lists / "Places_LT_train.txt", tmp_path, transform=CROP, num_classes=365)
    assert len(dataset) == 62_500
    images: dict[int, int] = {}
    for label in dataset.labels.tolist():
        images[label] = images.get(label, 0) + 1
    assert sorted(images) == list(range(365))
    assert (max(images.values()), min(images.values())) == (4980, 5)
    many, few = ([n for n in images.values() if test(n)] for test in (lambda n: n > 100, lambda n: n < 20))
    assert (len(many), 365 - len(many) - len(few), len(few)) == (131, 163, 71)
    assert (sum(many), 62_500 - sum(many) - sum(few), sum(few)) == (52_762, 8_934, 804)


def test_the_published_open_set_has_no_label(places_lists, tmp_path, encode):
    first = (places_lists / "Places_LT_open.txt").read_text().split(" ")[0]
    put(tmp_path, first, encode(8, 8))
    dataset = ListDataset(places_lists / "Places_LT_open.txt", tmp_path, transform=CROP, num_classes=365)
    assert len(dataset) == 6_600
    assert np.unique(dataset.labels).tolist() == [-1]
