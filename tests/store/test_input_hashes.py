"""Hashes of inputs: the command of each computes it again."""

import json
import subprocess

import numpy as np
import pytest

from facelt.store.input_hashes import store_inputs, tree_input
from facelt.store.writer import StoreWriter
from facelt.utils.provenance import InputHash
from tests.feature_files import write_feature

IMAGES = ["Ann Lee/1 .jpg", "Bob'$(x)/2&|.jpg", "Cy/3.jpg", "Di/4.jpg"]


def computed_by(command, folder):
    """The SHA-256 that a command prints, run in a folder."""
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=60)
    return result.stdout.split()[0]


@pytest.fixture
def tree(tmp_path):
    for number, image in enumerate(IMAGES[:3]):
        write_feature(tmp_path / "a tree" / f"{image}_toy.bin", np.full(4, number))
    return tmp_path / "a tree"


def test_a_file_and_a_store(tmp_path):
    path = tmp_path / "it's a list.csv"
    path.write_text("x\n")
    item = InputHash.of_file(path)
    assert computed_by(item.command, tmp_path) == item.sha256
    writer = StoreWriter(tmp_path / "store", ["a"], ["A"], {"direct": 2, "meta": 2}, {}, reachability=True)
    writer.write(0, {"direct": np.array([[1.0, 0.0]]), "meta": np.array([[0.5, 0.0]])}, np.ones(1))
    writer.finish()
    items = store_inputs(tmp_path / "store", ["meta"])
    names = ["meta.json", "items.csv", "meta.npy", "reachability.npy"]
    assert [item.path for item in items] == [str(tmp_path / "store" / name) for name in names]
    assert [computed_by(item.command, tmp_path) for item in items] == [item.sha256 for item in items]


def test_a_tree_by_a_text_list(tree, tmp_path):
    (tmp_path / "list.txt").write_text("# images\n" + "\n".join(IMAGES[::-1]) + "\n\n")
    item = tree_input(tree, "toy", [tmp_path / "list.txt"])
    assert computed_by(item.command, tmp_path) == item.sha256
    (tmp_path / "list.txt").write_text("\n".join(IMAGES))
    assert tree_input(tree, "toy", [tmp_path / "list.txt"]).sha256 != item.sha256


def test_a_tree_by_lists_of_json_that_share_images(tree, tmp_path):
    for name, images in (("small", IMAGES[:2]), ("large", IMAGES[::-1])):
        (tmp_path / f"{name} 1").write_text(json.dumps({"path": images}))
    lists = [tmp_path / "small 1", tmp_path / "large 1"]
    item = tree_input(tree, "toy", lists)
    assert computed_by(item.command, tmp_path) == item.sha256
    assert tree_input(tree, "toy", lists[1:]).sha256 != item.sha256
