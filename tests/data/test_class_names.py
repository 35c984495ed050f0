"""Class names from folders of lists, identities.csv and classes.txt."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from facelt.data.cifar import CifarData
from facelt.data.image_files import ListData, folder_names
from facelt.data.records import RecordData
from facelt.errors import UserError


def test_folder_names_below_the_common_folder():
    assert folder_names(["train/a/1.jpg", "train/b/c/2.jpg"]) == ["a", "b/c"]
    assert folder_names(["a/b/1.jpg", "a/b/c/2.jpg"]) == ["", "c"]
    assert folder_names(["ab/1.jpg", "ac/2.jpg"]) == ["ab", "ac"]
    assert folder_names(["one/1.jpg", "one/2.jpg"]) == ["", ""]
    assert folder_names(["1.jpg", "a/2.jpg"]) == ["", "a"]
    assert folder_names([]) == []


def data_of(labels, classes, paths=()) -> SimpleNamespace:
    dataset = SimpleNamespace(labels=np.array(labels), paths=paths)
    return SimpleNamespace(num_classes=classes, train=SimpleNamespace(dataset=dataset))


def test_a_class_of_a_list_is_called_by_its_folder_if_it_has_one_alone():
    paths = ["t/cat/1.jpg", "t/cat/2.jpg", "t/dog/1.jpg", "t/wolf/1.jpg", "t/owl/1.jpg"]
    config = ListData.model_construct(kind="list")
    assert config.class_names(data_of([0, 0, 1, 1, 3], 4, paths)) == ["cat", "1", "2", "owl"]
    # All images are in one folder, so folders do not distinguish classes.
    assert config.class_names(data_of([0, 1], 2, ["a/1.jpg", "a/2.jpg"])) == ["0", "1"]


@pytest.fixture
def record(tiny_faces, tmp_path):
    """Returns a copy of the record and its configuration."""
    path = shutil.copytree(tiny_faces.parent, tmp_path / "faces") / "train.rec"
    return path, RecordData(kind="record", train=path, image_size=(32, 32))


def test_records_have_names_in_identities_csv(record):
    path, config = record
    data = config.open(0)
    assert config.class_names(data) == list("012345")
    path.with_name("identities.csv").write_text("label,name\n0,Ann\n3,=1+1\n")
    assert config.class_names(data) == ["Ann", "1", "2", "=1+1", "4", "5"]
    path.with_name("identities.csv").write_text("who,name\n0,Ann\n")
    with pytest.raises(UserError, match="needs the columns label and name"):
        config.class_names(data)


def test_a_manifests_new_labels_bear_the_names_of_the_old_ones(record, tmp_path):
    path, config = record
    path.with_name("identities.csv").write_text("label,name\n0,Ann\n1,Bob\n")
    (tmp_path / "manifest.csv").write_text("key,label,new_label\n15,1,0\n1,0,1\n")
    config = config.model_copy(update={"manifest": tmp_path / "manifest.csv"})
    assert config.class_names(config.open(0)) == ["Bob", "Ann"]


def test_cifars_names_are_lines(tmp_path):
    config = CifarData(kind="cifar", root=tmp_path, classes=10)
    assert config.class_names(data_of([0], 3)) == ["0", "1", "2"]
    (tmp_path / "classes.txt").write_text("apple\nbear\n")
    assert config.class_names(data_of([0], 3)) == ["apple", "bear", "2"]
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"classes\.txt: cannot be read"):
        config.class_names(data_of([0], 3))
